"""``llmbench models``: make variants of a model, to compare precisions."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from llmbench.errors import UserError
from llmbench.models.export import DTYPES, export_hf
from llmbench.models.folders import size_bytes
from llmbench.models.onnx import PRECISIONS, export_onnx
from llmbench.models.quantize import TYPES, check_type, quantize

LOST = (
    "note: precision that the source has lost does not come back; "
    "size and speed are the variant's, agreement is to the source"
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The subcommands and their flags. ``run`` does what they ask for."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_quantize(actions.add_parser("quantize", help="GGUF files of other types of a GGUF file"))
    _add_export(actions.add_parser("export", help="a Hugging Face directory of a GGUF file"))
    _add_onnx(actions.add_parser("onnx", help="an ONNX directory of a Hugging Face directory"))
    actions.add_parser("path", help="print the embedded model's path, fetching it if need be")


def run(args: argparse.Namespace) -> int:
    """Do what ``add_flags`` parsed; what was made is printed, a line each."""
    match args.action:
        case "quantize":
            types = [check_type(name.strip()) for name in args.to.split(",") if name.strip()]
            if not types:
                raise UserError(f"--to names no type: give some of {', '.join(TYPES)}")
            source, out = _source(args.file), args.out or Path()
            paths = quantize(source, types, out, progress=_say, force=args.force)
            _print_made(paths, types)
            _say(LOST)
        case "export":
            made = export_hf(_source(args.file), args.out, dtype=args.dtype)
            _print_made([made], [args.dtype])
            _say(LOST)
        case "onnx":
            made = export_onnx(args.dir, args.out, precision=args.precision, device=args.device)
            _print_made([made], [args.precision])
        case "path":
            print(_source(None))
    return 0


def _add_quantize(parser: argparse.ArgumentParser) -> None:
    _add_file(parser)
    parser.add_argument(
        "--to", required=True, metavar="TYPES", help=f"comma-separated: {', '.join(TYPES)}"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where to (here)")
    parser.add_argument("--force", action="store_true", help="replace files that are there already")


def _add_export(parser: argparse.ArgumentParser) -> None:
    _add_file(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="not there yet")
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help="(%(default)s)")


def _add_onnx(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, metavar="HF_DIR", help="a Hugging Face directory")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="not there yet")
    parser.add_argument(
        "--precision", choices=PRECISIONS["cuda"], default="int4", help="(%(default)s)"
    )
    parser.add_argument("--device", choices=list(PRECISIONS), default="cpu", help="(%(default)s)")


def _add_file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", nargs="?", type=Path, metavar="FILE.gguf", help="(the embedded model)"
    )


def _source(file: Path | None) -> Path:
    if file is not None:
        return file
    from llmbench.engines.models import embedded_model

    return embedded_model(progress=sys.stderr.isatty())


def _print_made(paths: Sequence[Path], kinds: Sequence[str]) -> None:
    for path, kind in zip(paths, kinds, strict=True):
        print(f"{path}  {size_bytes(path) / 1e6:.1f} MB  {kind}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
