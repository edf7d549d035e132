"""n-gram models with modified Kneser-Ney smoothing (Chen & Goodman 1998), as counts and as a model.

What was new over counting: a word's share of the mass that discounting frees is not how often it occurs but after how
many different words. The estimate is that of Heafield et al. 2013 ("Scalable Modified Kneser-Ney Language Model
Estimation"): interpolated, three discounts per order, mass for unknown words from a uniform distribution.

A count table fits no trunk of layers, so this file has its own behind the same calls: `NGramModel` embeds a token as
itself, its "hidden state" is the context that the next word depends on, and its head looks the logits up. Evaluation,
scoring and the engine take it as they take any model.
"""

from __future__ import annotations

import gzip
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from etymon.errors import DataError
from etymon.nn import IGNORE, Count, Output, State
from etymon.nn.layout import Layout
from etymon.nn.runs import Runs
from etymon.nn.state import Vectors
from etymon.nn.walk import Walker, following

START, END, UNKNOWN = "<s>", "</s>", "<unk>"
Words = tuple[str, ...]
Discounts = tuple[float, float, float]
FALLBACK: Discounts = (0.5, 1.0, 1.5)


@dataclass(frozen=True)
class NGrams:
    """log10 probabilities of n-grams, one table per order from 1 up, and the log10 backoff weights of contexts."""

    tables: tuple[dict[Words, float], ...]
    backoffs: dict[Words, float] = field(repr=False)

    @property
    def order(self) -> int:
        """The length of the longest n-grams."""
        return len(self.tables)

    @cached_property
    def words(self) -> Words:
        """Every word that can be predicted, in the table's order: the start of a sentence cannot."""
        return tuple(word for (word,) in self.tables[0] if word != START)

    @cached_property
    def continuations(self) -> dict[Words, list[tuple[str, float]]]:
        """The words seen after each context, with their log10 probabilities."""
        found: dict[Words, list[tuple[str, float]]] = defaultdict(list)
        for table in self.tables[1:]:
            for (*context, word), value in table.items():
                found[tuple(context)].append((word, value))
        return found

    def log10(self, word: str, context: Sequence[str] = ()) -> float:
        """Return log10 p(word | context), backing off to shorter contexts where the n-gram was never seen."""
        words = tuple(w if (w,) in self.tables[0] else UNKNOWN for w in (*context, word))[-self.order :]
        value = self.tables[len(words) - 1].get(words)
        if value is not None:
            return value
        if len(words) == 1:
            return -math.inf
        return self.backoffs.get(words[:-1], 0.0) + self.log10(word, words[1:-1])


def estimate(sentences: Iterable[Sequence[str]], order: int, fallback: Discounts | None = None) -> NGrams:
    """Estimate a model of `order` from sentences of words.

    Raises DataError where there are too few n-grams of some count to estimate an order's discounts, unless `fallback`
    gives discounts for this case, and for words that are the marks of a sentence's ends.
    """
    counts: list[Counter[Words]] = [Counter() for _ in range(order)]
    for words in sentences:
        for mark in {START, END} & set(words):
            raise DataError(f"the word {mark!r} marks an end of a sentence and cannot stand in one")
        marked = (START, *words, END)
        for n in range(1, order + 1):
            counts[n - 1].update(marked[i : i + n] for i in range(len(marked) - n + 1))
    if not counts[0]:
        raise DataError("there is nothing to count: no sentence")
    # below the highest order, an n-gram counts once for every word that it follows; nothing stands before <s>
    adjusted: list[dict[Words, int]] = [*({} for _ in range(order - 1)), dict(counts[-1])]
    for n in range(order - 1, 0, -1):
        follows = Counter(gram[1:] for gram in counts[n])
        follows.update({gram: count for gram, count in counts[n - 1].items() if gram[0] == START})
        adjusted[n - 1] = dict(follows)
    adjusted[0].pop((START,), None)
    return _interpolate(adjusted, [_discounts(table, n + 1, fallback) for n, table in enumerate(adjusted)])


def _discounts(counts: dict[Words, int], n: int, fallback: Discounts | None) -> Discounts:
    """Return what is taken off counts of 1, 2 and more (Chen & Goodman's equation 26)."""
    of = Counter(counts.values())
    if of[1] and of[2] and of[3]:
        y = of[1] / (of[1] + 2 * of[2])
        d1, d2, d3 = (k - (k + 1) * y * of[k + 1] / of[k] for k in (1, 2, 3))
        if 0 <= d1 <= 1 and 0 <= d2 <= 2 and 0 <= d3 <= 3:
            return d1, d2, d3
    if fallback is None:
        raise DataError(
            f"the {n}-grams are too few for discounts: {of[1]}, {of[2]}, {of[3]}, {of[4]} were seen 1, 2, 3 and 4 "
            f"times; count more text, lower the order, or pass fallback={FALLBACK}"
        )
    return fallback


def _interpolate(adjusted: list[dict[Words, int]], discounts: list[Discounts]) -> NGrams:
    """Mix every order's discounted shares with the next lower order's probabilities."""
    lower: dict[Words, float] = {}
    tables: list[dict[Words, float]] = []
    backoffs: dict[Words, float] = {}
    for n, (counts, discount) in enumerate(zip(adjusted, discounts, strict=True)):
        totals: Counter[Words] = Counter()
        freed: defaultdict[Words, float] = defaultdict(float)
        for gram, count in counts.items():
            totals[gram[:-1]] += count
            freed[gram[:-1]] += discount[min(count, 3) - 1]
        gamma = {context: freed[context] / total for context, total in totals.items()}
        if n == 0:
            uniform = gamma[()] / (len(counts) + 1)  # with the unknown word
            mixed = {g: (c - discount[min(c, 3) - 1]) / totals[()] + uniform for g, c in counts.items()}
            mixed = {(UNKNOWN,): mixed.get((UNKNOWN,), uniform)} | mixed
        else:
            backoffs |= {context: math.log10(value) for context, value in gamma.items()}
            mixed = {
                g: (c - discount[min(c, 3) - 1]) / totals[g[:-1]] + gamma[g[:-1]] * lower[g[1:]]
                for g, c in counts.items()
            }
        tables.append({gram: math.log10(p) for gram, p in mixed.items()})
        lower = mixed
    tables[0] = {(START,): 0.0} | tables[0]  # a mark that is given, never predicted
    return NGrams(tuple(tables), backoffs)


# -- the ARPA format --------------------------------------------------------------------------------------------------


def write_arpa(model: NGrams, path: str | Path) -> None:
    """Write the text format that all n-gram tools read."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("\\data\\\n")
        file.writelines(f"ngram {n}={len(table)}\n" for n, table in enumerate(model.tables, 1))
        for n, table in enumerate(model.tables, 1):
            file.write(f"\n\\{n}-grams:\n")
            for gram, value in table.items():
                backoff = f"\t{model.backoffs.get(gram, 0.0):.8g}" if n < model.order else ""
                file.write(f"{value:.8g}\t{' '.join(gram)}{backoff}\n")
        file.write("\n\\end\\\n")


def read_arpa(path: str | Path) -> NGrams:
    """Read an ARPA file, gzipped or not. Raises DataError that names the line where it is not one."""
    opened = gzip.open if str(path).endswith(".gz") else open
    declared: list[int] = []
    tables: list[dict[Words, float]] = []
    backoffs: dict[Words, float] = {}
    number, ended = 0, False
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            for number, line in enumerate(file, 1):  # noqa: B007  (the error names it)
                line = line.strip("\n\r ")
                if line.startswith("ngram ") and not tables:
                    declared.append(int(line.partition("=")[2]))
                elif line == f"\\{len(tables) + 1}-grams:":
                    tables.append({})
                elif line == "\\end\\":
                    ended = True
                    break
                elif line and line != "\\data\\":
                    value, words, *rest = line.split("\t")
                    gram = tuple(words.split(" "))
                    if len(gram) != len(tables) or len(rest) > 1:
                        raise ValueError(f"not a {len(tables)}-gram")
                    tables[-1][gram] = float(value)
                    if rest and float(rest[0]):
                        backoffs[gram] = float(rest[0])
    except (ValueError, OSError, EOFError) as error:
        raise DataError(f"{path}, line {number}: not readable as an ARPA file ({error})") from None
    if not ended or not tables or [len(table) for table in tables] != declared:
        raise DataError(f"{path}: the n-grams are not as many as its head declares ({declared}); is it truncated?")
    return NGrams(tuple(tables), backoffs)


# -- behind the calls of every model ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class NGramSpec:
    """What the other rooms ask of a model's spec."""

    name: str
    vocab: int
    order: int
    context: int
    entries: int
    family: str = "ngram"

    def count(self) -> Count:
        """Return the numbers of stored probabilities and backoff weights as parameters."""
        return Count(total=self.entries, non_embedding=self.entries, active=self.order)


class NGramModel(nn.Module):
    """An n-gram model over token ids: `names[id]` is the word that an id stands for (END for the end of a document).

    Ids whose word the table does not know share the unknown word's probability evenly.
    """

    def __init__(self, table: NGrams, names: Sequence[str] | None = None, context: int = 1024) -> None:
        super().__init__()
        self.encoder = None
        self.decoder = Contexts(table.order - 1, start=len(names or table.words))
        self.head = NGramHead(table, tuple(names or table.words))
        self.spec = NGramSpec(
            name=f"{table.order}-gram",
            vocab=len(self.head.names),
            order=table.order,
            context=context,
            entries=sum(map(len, table.tables)) + len(table.backoffs),
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        *,
        documents: Tensor | None = None,
        state: State | None = None,
        logits: bool = True,
    ) -> Output:
        """Return the context behind every id of `input_ids` [batch, time], and with `logits` what follows."""
        shape = (input_ids.shape[0], input_ids.shape[1])
        layout = Layout(
            shape,
            input_ids.device,
            attention_mask=attention_mask,
            position_ids=position_ids,
            documents=documents,
            state=state,
        )
        hidden = self.decoder(input_ids[..., None], layout, state.cells[0] if state is not None else None)
        if state is not None:
            state.lengths += layout.time
        return Output(last_hidden_state=hidden, logits=self.head(hidden) if logits else None)

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype | None = None) -> State:
        """Allocate an empty state for `rows` sequences of up to `capacity` tokens."""
        cell = self.decoder.new_state(rows, capacity, torch.int64, self.device)
        return State([cell], torch.zeros(rows, dtype=torch.int64), capacity)


class Contexts(Walker):
    """The last `size` ids behind every position, oldest first; `start` stands before a document's beginning."""

    def __init__(self, size: int, start: int) -> None:
        super().__init__()
        self.size, self.start = size, start

    def new_state(self, rows: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Vectors:
        """Allocate the last ids of `rows` sequences."""
        return Vectors(torch.empty((rows, self.size, 1), dtype=dtype, device=device), initial=(self.start,))

    def walk(self, x: Tensor, runs: Runs | None, cell: Vectors | None) -> Tensor:
        """Return contexts [batch, time, size] of ids `x` [batch, time, 1]."""
        B, T, _ = x.shape
        past = cell.read()[0] if cell is not None else x.new_full((B, self.size, 1), self.start)
        joined = torch.cat((past, x), 1)[..., 0]
        windows = [joined[:, k + 1 : k + 1 + T] for k in range(self.size)]
        ages = runs.ages if runs is not None else None
        if ages is not None:
            windows = [torch.where(ages >= self.size - 1 - k, w, self.start) for k, w in enumerate(windows)]
        if cell is not None:
            cell.write(following(past, x, runs))
        return torch.stack(windows, -1) if windows else x.new_zeros(B, T, 0)


class NGramHead(nn.Module):
    """Contexts [..., order - 1] → natural logarithms of probabilities [..., vocab]."""

    unigrams: Tensor

    def __init__(self, table: NGrams, names: Words) -> None:
        super().__init__()
        self.table, self.names = table, names
        self.words = (*names, START)
        known = {word for (word,) in table.tables[0]} - {UNKNOWN}
        self.ids = {name: i for i, name in enumerate(names) if name in known}
        strangers = sum(name not in self.ids for name in names)
        unknown = table.log10(UNKNOWN) - math.log10(max(1, strangers))
        unigrams = [table.log10(name) if name in self.ids else unknown for name in names]
        self.register_buffer("unigrams", torch.tensor(unigrams, dtype=torch.float64), persistent=False)

    def forward(self, contexts: Tensor) -> Tensor:
        """Return the logits [..., vocab], which are normalised: their exponentials sum to 1."""
        flat = contexts.reshape(math.prod(contexts.shape[:-1]), contexts.shape[-1])
        unique, inverse = flat[:1], flat.new_zeros(len(flat))
        if flat.shape[1]:
            unique, inverse = flat.unique(dim=0, return_inverse=True)
        rows = torch.stack([self._row(context) for context in unique.tolist()])
        return (rows * math.log(10)).float()[inverse].view(*contexts.shape[:-1], len(self.names))

    def _row(self, ids: list[int]) -> Tensor:
        context = [self.words[i] if i == len(self.names) or self.words[i] in self.ids else UNKNOWN for i in ids]
        begins = max((i for i, word in enumerate(context) if word == START), default=0)
        row = self.unigrams.clone()
        for start in range(len(context) - 1, begins - 1, -1):  # from short contexts to long ones
            suffix = tuple(context[start:])
            row += self.table.backoffs.get(suffix, 0.0)
            seen = [(self.ids[w], value) for w, value in self.table.continuations.get(suffix, ()) if w in self.ids]
            if seen:
                row[[i for i, _ in seen]] = torch.tensor([value for _, value in seen], dtype=row.dtype)
        return row

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the summed negative log-likelihood of `targets` [...]; targets of -100 count nothing."""
        trained = targets != IGNORE
        total = torch.zeros(())
        for h, t in zip(hidden[trained].split(1024), targets[trained].split(1024), strict=True):
            total -= self(h).gather(1, t[:, None]).sum()
        return total
