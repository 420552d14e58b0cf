"""Forms of an exported model for other runtimes: each a folder in the convention of that ecosystem.

A target is one module of this package with one function::

    def write(source: TargetSource, folder: Path) -> list[Path]:
        ...

It writes the files of the target into ``folder``, an empty folder that the caller has made, runs what it wrote where
the runtime can be had, compares the results with those of the exported ONNX file (:mod:`.agreement_check`), and returns
the paths of its files. On disagreement it raises :class:`~yolact_deploy.errors.ExportError`; the caller then removes
the folder. :mod:`.registry` lists the targets and imports a module when its target is written.
"""
