// Runs an exported model in OpenVINO, without yolact-deploy:  detect MODEL PICTURE.ppm [THRESHOLD]
// MODEL is STEM_openvino_model/STEM.xml (export --format openvino) or STEM_inlined.onnx (export --inline).
// Prints a line for each detection: class, score, box x1 y1 x2 y2 in pixels, number of mask pixels.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <openvino/openvino.hpp>

// Bilinear value at output pixel (x, y), when a map is enlarged by (sx, sy); pixel centers are at one half.
template <typename T>
static float sample(const T* map, int width, int height, int channels, float x, float y) {
    x = std::clamp(x, 0.f, width - 1.f), y = std::clamp(y, 0.f, height - 1.f);
    int x0 = int(x), y0 = int(y), x1 = std::min(x0 + 1, width - 1), y1 = std::min(y0 + 1, height - 1);
    auto at = [&](int row, int column) { return float(map[(size_t(row) * width + column) * channels]); };
    auto along = [&](int row) { return at(row, x0) + (at(row, x1) - at(row, x0)) * (x - x0); };
    return along(y0) + (along(y1) - along(y0)) * (y - y0);
}

int main(int argc, char** argv) try {
    if (argc < 3) throw std::runtime_error("expected: detect MODEL PICTURE.ppm [THRESHOLD]");
    std::ifstream file(argv[2], std::ios::binary);
    std::string magic;
    int width = 0, height = 0, most = 0;
    file >> magic >> width >> height >> most;
    if (magic != "P6" || most != 255 || width < 1 || height < 1) throw std::runtime_error("expected a PPM file (P6)");
    std::vector<unsigned char> rgb(size_t(width) * height * 3);
    file.get(), file.read(reinterpret_cast<char*>(rgb.data()), rgb.size());

    ov::Core core;
    ov::preprocess::PrePostProcessor steps(core.read_model(argv[1]));
    steps.output("masks").tensor().set_element_type(ov::element::f32);  // float16 in FP16 and INT8 files
    auto request = core.compile_model(steps.build(), "CPU", ov::hint::inference_precision(ov::element::f32))
                       .create_infer_request();
    ov::Tensor images = request.get_tensor("images");  // uint8 [1, S, S, 3], blue first
    int rows = images.get_shape()[1], columns = images.get_shape()[2];
    for (int y = 0; y < rows; y++)
        for (int x = 0; x < columns; x++)
            for (int c = 0; c < 3; c++)
                images.data<uint8_t>()[(y * columns + x) * 3 + c] = uint8_t(0.5f + sample(&rgb[2 - c], width, height, 3,
                    (x + 0.5f) * width / columns - 0.5f, (y + 0.5f) * height / rows - 0.5f));
    request.infer();

    ov::Tensor masks = request.get_tensor("masks");  // probabilities [1, D, h, w] over the whole picture
    int h = masks.get_shape()[2], w = masks.get_shape()[3], count = request.get_tensor("num_detections").data<int>()[0];
    for (int i = 0; i < count; i++) {
        float score = request.get_tensor("scores").data<float>()[i];
        if (score <= (argc > 3 ? std::atof(argv[3]) : 0.15)) continue;
        const float *box = request.get_tensor("boxes").data<float>() + 4 * i, *mask = masks.data<float>() + i * h * w;
        auto pixels = [](float a, int side) { return std::clamp(a, 0.f, 1.f) * side; };  // corners may be swapped
        size_t area = 0;
        for (int y = 0; y < height; y++)
            for (int x = 0; x < width; x++)
                area += sample(mask, w, h, 1, (x + 0.5f) * w / width - 0.5f, (y + 0.5f) * h / height - 0.5f) > 0.5f;
        std::printf("%d %.4f %.2f %.2f %.2f %.2f %zu\n", request.get_tensor("labels").data<int>()[i], score,
            pixels(std::min(box[0], box[2]), width), pixels(std::min(box[1], box[3]), height),
            pixels(std::max(box[0], box[2]), width), pixels(std::max(box[1], box[3]), height), area);
    }
} catch (const std::exception& error) { std::fprintf(stderr, "error: %s\n", error.what()); return 2; }
