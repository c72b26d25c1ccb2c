"""`db3d user-study`: a page of paired turntables with the paper's three questions, and the vote over its answers.

The protocol is that of DreamBooth3D (2303.13508, section 4.2): two assets of the same subject and prompt turn side by
side, sides and order are random, and the majority decides each pair. The page is one file that needs no server; each
participant downloads a file of answers and sends it back.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from db3d_nerfstudio.errors import UserError
from db3d_nerfstudio.evaluation.benchmark.cell import run_folder
from db3d_nerfstudio.evaluation.evaluate import EVALUATION, TURNTABLE
from db3d_nerfstudio.paths import command

QUESTIONS = {
    "consistency": "Which of the two is the more plausible and consistent 3D object?",
    "subject": "Which of the two looks more like the subject in the photos?",
    "prompt": "Which of the two fits the text better?",
}
"""The paper's three questions."""
CHOICES = ("left", "right", "none")
KEY, PAGE = "key.json", "study.html"


@dataclass
class UserStudyConfig:
    """Make the page of a user study from a benchmark's finished runs, or count its answers."""

    benchmark: Path
    """Folder of a `db3d benchmark`."""
    output: Path | None = None
    """Folder for page and key; by default user_study in the benchmark's folder."""
    methods: tuple[str, ...] = ()
    """The method to compare, then those to compare it with; by default all in the benchmark's order."""
    seed: int = 0
    """Seed of which method is on which side."""
    answers: tuple[Path, ...] = ()
    """Files of answers to count; without any, the page is made."""


@dataclass(frozen=True)
class Pair:
    """Two assets side by side."""

    name: str
    """Name on the page, which does not give the methods away."""
    left: dict[str, Any]
    """A line of the benchmark's results."""
    right: dict[str, Any]
    """Another line, of the same subject, prompt and seed."""


def main(config: UserStudyConfig) -> None:
    """Write page and key, or count the answers, print the vote and write it beside them."""
    from db3d_nerfstudio.console import announce

    output = config.output or config.benchmark / "user_study"
    if config.answers:
        key = read_key(output / KEY)
        table = vote(key, read_answers(config.answers, key["study"]))
        (output / "vote.json").write_text(json.dumps(table, indent=2) + "\n", "utf8")
        announce(vote_table(table))
        return
    pairs = make_pairs(read_results(config.benchmark), config.methods, config.seed)
    output.mkdir(parents=True, exist_ok=True)
    key = make_key(pairs)
    (output / KEY).write_text(json.dumps(key, indent=2) + "\n", "utf8")
    (output / PAGE).write_text(make_page(config.benchmark, pairs, key["study"]), "utf8")
    announce(f"Send {output / PAGE} to the participants, and keep {output / KEY}. To count their answers:")
    announce(f"  {command('db3d', 'user-study', '--benchmark', config.benchmark)} --answers answers*.json")


def read_results(benchmark: Path) -> list[dict[str, Any]]:
    """The lines of a benchmark's results.

    Raises:
        UserError: there are none.
    """
    path = benchmark / "results.jsonl"
    if not path.is_file() or not path.read_text("utf8").strip():
        raise UserError(f"{benchmark} has no results: run db3d benchmark --output {benchmark} first")
    return [json.loads(line) for line in path.read_text("utf8").splitlines()]


def make_pairs(records: Sequence[dict[str, Any]], methods: Sequence[str], seed: int) -> list[Pair]:
    """The first method against each other one, on every subject, prompt and seed that both finished.

    Raises:
        UserError: there is nothing to compare.
    """
    methods = list(methods) or list(dict.fromkeys(record["method"] for record in records))
    cells = {(r["subject"], r["prompt"], r["seed"], r["method"]): r for r in records}
    draw = random.Random(seed)
    pairs = []
    for other in methods[1:]:
        for (*cell, method), record in cells.items():
            if method == methods[0] and (*cell, other) in cells:
                sides = [record, cells[*cell, other]]
                draw.shuffle(sides)
                pairs.append(sides)
    if not pairs:
        raise UserError("nothing to compare: no two methods have finished the same subject and prompt")
    draw.shuffle(pairs)
    return [Pair(f"pair-{index:03d}", *sides) for index, sides in enumerate(pairs)]


def make_key(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Which method is on which side, and a digest of it that page and answers carry."""
    sides = {
        pair.name: {
            "left": pair.left["method"],
            "right": pair.right["method"],
            **{name: pair.left[name] for name in ("subject", "prompt", "seed")},
        }
        for pair in pairs
    }
    digest = sha256(json.dumps(sides, sort_keys=True).encode()).hexdigest()[:16]
    return {"study": digest, "pairs": sides}


def make_page(benchmark: Path, pairs: Sequence[Pair], study: str) -> str:
    """The page, with its pictures inside and without the names of the methods.

    Raises:
        UserError: a turntable is missing.
    """
    from jinja2 import Environment, FileSystemLoader

    from db3d_nerfstudio.evaluation.benchmark.report import TEMPLATES, embedded, thumbnails

    pictures: dict[str, str] = {}

    def show(record: dict[str, Any]) -> str:
        path = run_folder(benchmark / "cells" / record["cell"], record["method"]) / EVALUATION / TURNTABLE
        uri = embedded(path)
        if uri is None:
            raise UserError(f"{path} is missing: start the benchmark again to make it")
        name = sha256(uri.encode()).hexdigest()[:12]
        pictures[name] = uri
        return name

    shown = [
        {
            "name": pair.name,
            "prompt": pair.left["prompt"],
            "photos": thumbnails(Path(pair.left["photos"])),
            "left": show(pair.left),
            "right": show(pair.right),
        }
        for pair in pairs
    ]
    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=True)
    study_data = {"study": study, "pairs": shown, "pictures": pictures, "questions": QUESTIONS}
    return environment.get_template("user_study.html").render(data=study_data)


def read_key(path: Path) -> dict[str, Any]:
    """The key of a study.

    Raises:
        UserError: there is none.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing: answers cannot be read without this file, which is made with the page")
    return json.loads(path.read_text("utf8"))


def read_answers(paths: Iterable[Path], study: str) -> list[dict[str, dict[str, str]]]:
    """Every participant's answers, by pair and question; of two files of one participant the later counts.

    Raises:
        UserError: a file belongs to another study, or is not a file of answers.
    """
    participants = {}
    for path in paths:
        try:
            content = json.loads(path.read_text("utf8"))
            participant, answers, theirs = content["participant"], content["answers"], content["study"]
            choices = [choice for answer in answers.values() for choice in answer.values()]
        except (OSError, ValueError, KeyError, AttributeError, TypeError):
            raise UserError(f"{path} is not a file of answers from the study's page") from None
        if theirs != study or not set(choices) <= set(CHOICES):
            raise UserError(f"{path} has answers to another study: {theirs} instead of {study}")
        participants[participant] = answers
    return list(participants.values())


def majority(choices: Sequence[str]) -> str:
    """The most frequent choice; a draw is a tie, and so is "none" if it is most frequent."""
    counted = Counter(choices).most_common()
    if len(counted) > 1 and counted[0][1] == counted[1][1]:
        return "tie"
    return "tie" if counted[0][0] == "none" else counted[0][0]


def vote(key: dict[str, Any], answers: Sequence[dict[str, dict[str, str]]]) -> list[dict[str, Any]]:
    """For each pair of methods and question, how many pairs the majority gave to which; only judged pairs count."""
    tables: dict[tuple[str, str, str], Counter] = {}
    for name, sides in key["pairs"].items():
        for question in QUESTIONS:
            choices = [answer[name][question] for answer in answers if question in answer.get(name, {})]
            if choices:
                chosen = majority(choices)
                one, other = sorted((sides["left"], sides["right"]))
                counts = tables.setdefault((one, other, question), Counter())
                counts["tie" if chosen == "tie" else sides[chosen]] += 1
    return [
        {"methods": [one, other], "question": question, "pairs": counts.total(), "votes": dict(counts)}
        for (one, other, question), counts in tables.items()
    ]


def vote_table(table: Sequence[dict[str, Any]]) -> str:
    """The vote in words: a line for each pair of methods and question."""
    lines = []
    for row in table:
        shares = [f"{name} {row['votes'].get(name, 0) / row['pairs']:.0%}" for name in (*row["methods"], "tie")]
        lines.append(f"{row['question']:<12}{', '.join(shares)} of {row['pairs']} pairs")
    return "\n".join(lines)
