"""Write the JSON Schemas of the outputs into this folder, one file each."""

from __future__ import annotations

from pathlib import Path

from yolact_deploy.artifact import write_json
from yolact_deploy.benchmarks.described_schema import described_schema
from yolact_deploy.cli.schemas.output_types import OUTPUTS

if __name__ == "__main__":
    for name, output in OUTPUTS.items():
        write_json(Path(__file__).parent / f"{name}.schema.json", described_schema(output))
