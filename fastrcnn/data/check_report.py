"""The report of checks.check for people: findings by kind, errors first, then tables of classes and of recall."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

import yaml

from fastrcnn.annotations.problems import Problem
from fastrcnn.config import ProposalsConfig
from fastrcnn.data.checks import CheckedSet, Report
from fastrcnn.proposals.recall import SIZES
from fastrcnn.proposals.trial import SAMPLE, Trial, is_low

LOW_RECALL = (
    "recall is low: what no proposal covers is never found; proposals.method: quality and a larger proposals.long_side "
    f"find more, and check_data --proposals-sample {SAMPLE} measures them on your pictures"
)
FEW = 3  # lines that say the same are one, with their number, if there are more


def report_text(report: Report, per_kind: int | None = 10) -> str:
    """Findings, at most `per_kind` lines of each kind (None: all, one a line); then the tables."""
    parts = [_findings(report.findings, per_kind), _class_table(report), _names(report)]
    return "\n\n".join([*parts, *(_recall_table(s, report.classes) for s in report.sets if s.recall is not None)])


def trials_text(trials: Sequence[Trial], config: ProposalsConfig) -> str:
    """What each of the settings found and cost, a line each."""
    if not trials:
        return "no settings of the search were tried, as no picture has objects"
    lines = [f"tried on {len(trials[0].recall.best_iou)} objects in {trials[0].images} of your pictures:"]
    for trial in trials:
        name = " ".join(f"proposals.{key}={value}" for key, value in trial.settings.items())
        name = name or f"as configured (method {config.method}, long_side {config.long_side})"
        shares = zip(trial.recall.overall(), trial.recall.thresholds, strict=True)
        found = ", ".join(f"{share:.3f} at IoU {threshold:g}" for share, threshold in shares)
        lines.append(f"    {name}: recall {found}; {trial.boxes:.0f} boxes and {trial.seconds:.2f} s an image")
    lines.append("set what you choose in the configuration, name another proposals file, and run tools/proposals.py")
    return "\n".join(lines)


def _findings(findings: Sequence[Problem], per_kind: int | None) -> str:
    if not findings:
        return "nothing to report"
    groups: dict[tuple[bool, str, str], list[Problem]] = defaultdict(list)
    for problem in findings:
        groups[problem.outcome != "error", problem.kind, problem.outcome].append(problem)
    lines = []
    for (_, kind, outcome), problems in sorted(groups.items()):
        lines.append(f"{kind}: {len(problems)} ({outcome})")
        found = [(str(p), 1) for p in problems] if per_kind is None else list(_joined(problems))
        lines += [f"    {line}" for line, _ in found[:per_kind]]
        left = sum(count for _, count in found[len(found[:per_kind]) :])
        lines += [f"    and {left} more; --all lists them"] if left else []
    return "\n".join(lines)


def _joined(problems: Sequence[Problem]) -> Iterator[tuple[str, int]]:
    """A line for each problem and how many it stands for: more than FEW that say the same are one."""
    same: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        same[problem.text].append(problem)
    for equal in same.values():
        if len(equal) <= FEW:
            yield from ((str(problem), 1) for problem in equal)
        else:
            files = len({problem.file for problem in equal})
            others = f"{len(equal) - 1} more" + (f", in {files} files" if files > 1 else "")
            yield f"{equal[0]} (and {others}: the same)", len(equal)


def _class_table(report: Report) -> str:
    """Objects (difficult ones among them) and images with objects, by class and part."""
    parts = list(dict.fromkeys(checked.part for checked in report.sets))
    counts: dict[str, Counter] = {part: Counter() for part in parts}
    for checked in report.sets:
        for record in checked.records:
            count = counts[checked.part]
            count.update(("objects", k) for k in record.classes.tolist())
            count.update(("difficult", k) for k in record.classes[record.difficult].tolist())
            count.update(("images", k) for k in set(record.classes.tolist()))
    columns = [(part, what) for part in parts for what in ("objects", "difficult", "images")]
    width = max(map(len, [*report.classes, "class"]))
    lines = [f"{'class':{width}}" + "".join(f"{part + ' ' + what:>17}" for part, what in columns)]
    for k, name in enumerate(report.classes, start=1):
        lines.append(f"{name:{width}}" + "".join(f"{counts[part][what, k]:17}" for part, what in columns))
    for part in parts:
        records = [record for checked in report.sets if checked.part == part for record in checked.records]
        lines.append(
            f"{part}: {len(records)} images, {sum(len(r.boxes) == 0 for r in records)} of them without objects"
        )
    return "\n".join(lines)


def _names(report: Report) -> str:
    """The names in the files, the most frequent first, and all of them as a line of YAML."""
    if not report.names:
        return "the annotations name no class"
    known = {name.lower() for name in report.classes}
    names = sorted(report.names.items(), key=lambda item: (-item[1], item[0]))
    shown = (f"{name} {count}" + ("" if name.lower() in known else " (not in classes)") for name, count in names)
    line = yaml.safe_dump(sorted(report.names), default_flow_style=True, allow_unicode=True, width=float("inf")).strip()
    return f"names in the files: {', '.join(shown)}\nclasses: {line}"


def _recall_table(checked: CheckedSet, classes: Sequence[str]) -> str:
    """The share of objects that proposals cover: of all, by size, by class."""
    recall = checked.recall
    assert recall is not None
    if not len(recall.best_iou):
        return f"recall of {checked.name}: it has no objects to find"
    width = max(map(len, [*classes, "medium"]))
    rows = {"all": (recall.overall(), len(recall.best_iou))}
    rows |= {name: (recall.by_size()[name], int(recall.of_size(name).sum())) for name in SIZES}
    by_class = recall.by_class(len(classes) + 1)
    rows |= {name: (by_class[k], int((recall.classes == k).sum())) for k, name in enumerate(classes, start=1)}
    average = f"average recall over IoU 0.5 to 1: {recall.average():.3f}"
    lines = [f"recall of {checked.name}; {average} ({recall.difficult} difficult objects left out)"]
    lines.append(f"{'':{width}}" + "".join(f"{f'IoU {t:g}':>9}" for t in recall.thresholds) + f"{'objects':>9}")
    for name, (shares, objects) in rows.items():
        if objects:
            lines.append(f"{name:{width}}" + "".join(f"{share:9.3f}" for share in shares) + f"{objects:9}")
    if is_low(recall):
        lines.append(LOW_RECALL)
    return "\n".join(lines)
