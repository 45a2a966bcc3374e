"""Train Fast R-CNN as a configuration says."""

from _common import command_line, is_main, keep_memory, parser, run, shown


def main() -> None:
    p = parser(__doc__, config=True)
    p.add_argument("--resume", action="store_true", help="resume from the last checkpoint of this run")
    p.add_argument(
        "--eval-every", type=int, metavar="N", help="evaluate on data.validation, or else data.test, every N iterations"
    )
    p.add_argument(
        "--replay", type=int, metavar="N", help="show where iteration N, from the last checkpoint on, is not finite"
    )
    args = p.parse_intermixed_args()

    import fastrcnn
    from fastrcnn.config_files import load
    from fastrcnn.errors import FastRCNNError, NotFiniteError

    overrides = args.overrides
    if args.eval_every is not None:
        overrides = [*overrides, f"train.eval_every={args.eval_every}"]
    config = load(args.config, overrides)

    if args.replay is not None:
        from fastrcnn.train.replay import replay

        for line in replay(config, args.replay):
            print(line)
        return
    keep_memory()
    try:
        done = fastrcnn.train(config, args.resume)
    except NotFiniteError as e:
        if e.iteration is None:  # none of training
            raise
        again = command_line("train", args.config, *args.overrides, "--replay", e.iteration)
        raise FastRCNNError(f"{e}\nThis shows where, and changes nothing in the run:\n{again}") from None
    if not is_main():
        return
    print(f"{done.weights}: evaluate it with: {command_line('test', shown(args.config), done.weights)}")
    if done.best:
        print(f"{done.best}: the weights that had the highest mAP on the way, for the same command")


if __name__ == "__main__":
    run(main, "finished work is saved; run the same command with --resume to resume", parallel=True)
