/* Stands in for libnvinfer, libnvonnxparser and libnvinfer_plugin, so that NVIDIA's Python bindings can be imported on a
 * machine without TensorRT. Classes, enums and signatures are in the bindings; every factory of the library answers
 * that it has nothing, so no object that needs the library can be made. */
#include <stddef.h>

#define FACTORY(name) void *name(void) { return NULL; }
#define NUMBER(name) int name(void) { return 0; }

FACTORY(createInferBuilder_INTERNAL)
FACTORY(createInferRefitter_INTERNAL)
FACTORY(createInferRuntime_INTERNAL)
FACTORY(createNvOnnxParser_INTERNAL)
FACTORY(createNvOnnxParserRefitter_INTERNAL)
FACTORY(getBuilderPluginRegistry)
FACTORY(getPluginRegistry)
NUMBER(getInferLibVersion)
NUMBER(getNvOnnxParserVersion)
NUMBER(initLibNvInferPlugins)
