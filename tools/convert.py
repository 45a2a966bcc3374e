"""Write the data sets of a run in another format, VOC, COCO or YOLO, with copies of their pictures.

data.train, data.validation and data.test become the splits train, val and test of one new data set in OUTPUT, which
must not be there yet. When it is read again, images, boxes and classes are the same; YOLO alone has no flag for
difficult objects.
"""

from pathlib import Path

from _common import parser, run


def main() -> None:
    p = parser(__doc__)
    p.add_argument("config", metavar="CONFIG", help="a YAML file; see configs/")
    p.add_argument("output", metavar="OUTPUT", help="a new folder")
    p.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="data.on_bad_box=clip")
    p.add_argument("--to", required=True, choices=("voc", "coco", "yolo"), help="the new format")
    p.add_argument("--link", action="store_true", help="make symbolic links to the pictures in place of copies")
    args = p.parse_intermixed_args()

    from fastrcnn.annotations.convert import SPLITS, convert
    from fastrcnn.config_files import load

    records = convert(load(args.config, args.overrides), args.to, Path(args.output), args.link)
    for part, members in records.items():
        print(f"{part}: {len(members)} images, {sum(len(record.boxes) for record in members)} objects")
    print("read it with\n\ndata:" + ("\n  xml_origin: 1" if args.to == "voc" else ""))
    for part in records:
        print(f"  {part}: [{{format: {args.to}, root: {args.output}, split: {SPLITS[part]}}}]")


if __name__ == "__main__":
    run(main)
