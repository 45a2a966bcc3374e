"""Print a network's layers: sizes, receptive fields, parameters and GFLOP for a picture of 500 x 375 and its RoIs."""

from _common import parser, run

PICTURE = 500, 375  # width and height, VOC's most frequent


def main() -> None:
    p = parser(__doc__)
    p.add_argument("network", metavar="WEIGHTS|CONFIG", help="a weights file, or a YAML file")
    p.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help="of a YAML file: model.backbone=caffenet")
    p.add_argument("--rois", type=int, default=2000, help="of the picture (%(default)s)")
    args = p.parse_intermixed_args()

    import torch

    from fastrcnn.config_files import load
    from fastrcnn.images import image_scale
    from fastrcnn.model.fast_rcnn import FastRCNN
    from fastrcnn.model.summary import Row, summarise
    from fastrcnn.model.weights import load_model

    model = None
    if args.network.endswith((".yaml", ".yml")):
        config = load(args.network, args.overrides)
    else:
        if args.overrides:
            p.error("KEY=VALUE is for a YAML file; weights are what they are")
        model, config = load_model(args.network)
    with torch.device("meta"):
        whole = FastRCNN(config.model, len(config.classes) + 1)
    scale = image_scale(*PICTURE, config.image.test_short_side[0], config.image.test_long_side)
    width, height = (round(side * scale) for side in PICTURE)
    before = summarise(whole, height, width, args.rois)
    after = summarise(model or whole, height, width, args.rois)

    def numbers(row: Row, small: Row) -> str:
        text = f"{row.parameters:>12,} {row.gflop:>8.2f}"
        return text + (f" {small.parameters:>12,} {small.gflop:>8.2f}" if after != before else "")

    heads = f"{'parameters':>12} {'GFLOP':>8}" + (f" {'with SVD':>12} {'GFLOP':>8}" if after != before else "")
    print(f"{config.model.backbone}: a picture of {width} x {height} scaled pixels, {args.rois} RoIs")
    print(f"{'layer':<10} {'output':>16} {'stride':>6} {'offset':>6} {'field':>5} {heads}")
    for row, small in zip(before, after, strict=True):
        field = f"{row.field.stride:>6} {row.field.offset:>6g} {row.field.size:>5}" if row.field else " " * 19
        print(f"{row.layer:<10} {' x '.join(map(str, row.output)):>16} {field} {numbers(row, small)}")
    total, smaller = (
        Row("total", (), None, sum(row.parameters for row in rows), sum(row.gflop for row in rows))
        for rows in (before, after)
    )
    print(f"{total.layer:<47} {numbers(total, smaller)}")


if __name__ == "__main__":
    run(main)
