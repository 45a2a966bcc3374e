"""Train linear SVMs on fc7 in the place of softmax, with hard negative mining (paper, section 5.4).

The images are those of data.train, seen as at test. Every tool takes the weights file that is written.
"""

from _common import parser, run


def main() -> None:
    p = parser(__doc__, config=True, weights="a weights file of tools/train.py, or a run's folder")
    p.add_argument(
        "--output", metavar="FILE", help="default: svms.safetensors in the folder of the configuration's run"
    )
    args = p.parse_intermixed_args()

    from pathlib import Path

    from fastrcnn.config_files import load
    from fastrcnn.train.svms import train_svms

    config = load(args.config, args.overrides)
    print(f"wrote {train_svms(config, args.weights, args.output or Path(config.output) / 'svms.safetensors')}")


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command again to resume")
