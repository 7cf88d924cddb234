"""Pairs of sentences with how alike they are, the tokenizer, and both as data for a build."""

import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np

LENGTH = 32
"""Tokens a sentence; shorter ones are padded, longer ones cut."""

PAIRS: tuple[tuple[int, str, str], ...] = (
    (5, "A cat is sleeping on the sofa.", "The cat sleeps on the couch."),
    (5, "He bought a new car last week.", "Last week he purchased a new automobile."),
    (5, "The train was delayed by two hours.", "The train arrived two hours late."),
    (5, "She is afraid of spiders.", "Spiders scare her."),
    (5, "The meeting starts at nine o'clock.", "The meeting begins at 9 am."),
    (5, "Prices rose sharply in March.", "There was a steep increase in prices in March."),
    (5, "The doctor told him to rest.", "He was advised by the doctor to take a rest."),
    (5, "How do I reset my password?", "What is the way to change a forgotten password?"),
    (4, "A man is playing a guitar on stage.", "A musician performs a song for a crowd."),
    (4, "The river flooded several villages.", "Heavy rain left villages under water."),
    (4, "Our flight to Paris was cancelled.", "The airline called off the trip to France."),
    (4, "The children are building a sandcastle.", "Kids are playing with sand at the beach."),
    (4, "The company reported record profits.", "The firm earned more than ever before."),
    (4, "He cooked pasta for dinner.", "He made an Italian meal in the evening."),
    (4, "Scientists discovered a new planet.", "Astronomers found an unknown world."),
    (4, "The battery of my phone dies quickly.", "My mobile runs out of power too fast."),
    (3, "A dog runs across the field.", "A dog is sleeping in its basket."),
    (3, "The bakery sells fresh bread.", "The bakery closes at six in the evening."),
    (3, "She plays the violin in an orchestra.", "Her brother repairs old violins."),
    (3, "The new phone has a better camera.", "The new phone is too expensive."),
    (3, "Snow is expected in the mountains.", "The mountain road was closed by ice."),
    (3, "The team won the final match.", "The team lost its first game."),
    (3, "He studies medicine in Vienna.", "The hospital in Vienna hires young doctors."),
    (3, "The library has a large reading room.", "She borrowed three books yesterday."),
    (2, "The farmer harvests wheat in August.", "Bread has become more expensive."),
    (2, "A woman is riding a horse.", "The cattle are grazing in the meadow."),
    (2, "The bridge is closed for repairs.", "The bus takes another route to the station."),
    (2, "They visited the museum on Sunday.", "The painter sold his first picture."),
    (2, "The teacher explains fractions.", "The students are waiting for the school bus."),
    (2, "The ship left the harbour at dawn.", "Many fish live near the coast."),
    (2, "He writes software for banks.", "The bank raised its interest rates."),
    (2, "The garden is full of roses.", "Bees collect pollen in spring."),
    (1, "The court rejected the appeal.", "A policeman directs the traffic."),
    (1, "She painted the kitchen yellow.", "The restaurant serves breakfast until noon."),
    (1, "The satellite orbits the earth.", "The clock on the tower stopped."),
    (1, "The actor received an award.", "The concert hall has bad acoustics."),
    (1, "The vaccine protects against measles.", "The gym offers a course for beginners."),
    (1, "Oil prices fell on Monday.", "The mechanic changed the oil of the engine."),
    (1, "The wolf howled in the forest.", "The carpenter needs more wood."),
    (1, "The photograph shows my grandparents.", "The printer is out of paper."),
    (0, "The volcano erupted last night.", "Please sign the contract on page four."),
    (0, "He tunes the piano.", "Potatoes grow well in sandy soil."),
    (0, "The senate passed the budget.", "My sister is allergic to nuts."),
    (0, "The lamp in the hall is broken.", "Dolphins communicate by whistling."),
    (0, "Interest in chess is growing.", "The roof must be insulated before winter."),
    (0, "The recipe needs two eggs.", "The spacecraft landed on the moon."),
    (0, "She missed the last tram.", "Copper conducts electricity well."),
    (0, "The goalkeeper broke his finger.", "The novel is set in the eighteenth century."),
)
"""(0: nothing in common, to 5: the same said otherwise; first; second)."""

_SUBJECTS = ("The engineer", "A young nurse", "Our neighbour", "The old fisherman", "My teacher")
_VERBS = ("repaired", "forgot", "described", "bought", "was looking for", "complained about")
_OBJECTS = (
    *("the broken bicycle", "a map of the city", "the noise at night", "an unusual insect"),
    *("the results of the election", "a loaf of bread", "the heating", "two tickets to the opera"),
)


def other_sentences() -> list[str]:
    """240 sentences that are in no pair."""
    return [f"{a} {b} {c}." for a in _SUBJECTS for b in _VERBS for c in _OBJECTS]


class WordPiece:
    """BERT's tokenizer for lower-cased text: words and punctuation, then the longest known pieces.

    Args:
        vocabulary: ``vocab.txt`` of the model, a piece a line.
    """

    def __init__(self, vocabulary: Path) -> None:
        lines = vocabulary.read_text(encoding="utf-8").splitlines()
        self._ids = {piece: number for number, piece in enumerate(lines)}

    def __call__(self, sentences: Sequence[str], length: int = LENGTH) -> dict[str, np.ndarray]:
        """``input_ids`` and ``attention_mask``, [N, length] int64."""
        ids = np.zeros((len(sentences), length), np.int64)
        for row, sentence in zip(ids, sentences, strict=True):
            pieces = [piece for word in _split(sentence) for piece in self._pieces(word)]
            tokens = ["[CLS]", *pieces[: length - 2], "[SEP]"]
            row[: len(tokens)] = [self._ids[token] for token in tokens]
        return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64)}

    def _pieces(self, word: str) -> list[str]:
        pieces: list[str] = []
        start = 0
        while start < len(word):
            prefix = "##" if start else ""
            for end in range(len(word), start, -1):
                if prefix + word[start:end] in self._ids:
                    pieces.append(prefix + word[start:end])
                    start = end
                    break
            else:
                return ["[UNK]"]
        return pieces


def _split(text: str) -> list[str]:
    text = unicodedata.normalize("NFD", text.lower())
    text = "".join(char for char in text if unicodedata.category(char) != "Mn")
    return re.findall(r"\w+|[^\w\s]", text)


def pair_sentences() -> list[str]:
    """The first of every pair, then the second."""
    return [first for _, first, _ in PAIRS] + [second for _, _, second in PAIRS]


def write_data(path: Path, tokenizer: WordPiece) -> None:
    """``.npz`` for ``--data``: the pairs to judge by, the other sentences to calibrate with."""
    judged, others = tokenizer(pair_sentences()), tokenizer(other_sentences())
    np.savez(path, **judged, **{f"calibration_{name}": a for name, a in others.items()})


def rank_correlation(embeddings: np.ndarray) -> float:
    """Spearman's, of the cosines of the pairs with their grades.

    Args:
        embeddings: of `pair_sentences`, [2 * pairs, width], of any length.
    """
    return float(np.corrcoef(_ranks(cosines(embeddings)), _ranks([p[0] for p in PAIRS]))[0, 1])


def cosines(embeddings: np.ndarray) -> np.ndarray:
    """Of every pair, [pairs]."""
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    first, second = np.split(unit.astype(np.float64), 2)
    result: np.ndarray = (first * second).sum(1)
    return result


def _ranks(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Ranks, ties sharing their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    result: np.ndarray = (ends - (counts - 1) / 2)[inverse]
    return result
