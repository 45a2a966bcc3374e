"""Write a network as an ONNX file, checked in onnxruntime; fastrcnn.load and tools/detect.py take it, too."""

from pathlib import Path

from _common import parser, run


def main() -> None:
    p = parser(__doc__, weights="a weights file of tools/train.py or tools/compress.py")
    p.add_argument("output", metavar="OUTPUT", help="the ONNX file")
    p.add_argument("--pictures", metavar="IMAGE", nargs="+", default=[], help="compare on these; default: a made one")
    args = p.parse_args()

    from fastrcnn.export.onnx import export_onnx

    found = export_onnx(args.weights, args.output, args.pictures)
    same = f"the same {found.detections:,}"
    if found.same < found.detections:
        same = f"{found.same:,} of {found.detections:,} the same; for others a score or overlap lies so near its limit "
        same += "that rounding decides"
    print(f"{found.pictures} pictures, {found.rois:,} proposals: scores differ by at most {found.score_difference:.1e}")
    print(f"detections: {same}")
    times = "{:.3f} s in torch (float32), {:.3f} s in onnxruntime".format(*found.seconds)
    print(f"a picture without its proposals: {times}")
    print(f"wrote {args.output}, {Path(args.output).stat().st_size / 1e6:.0f} MB")


if __name__ == "__main__":
    run(main)
