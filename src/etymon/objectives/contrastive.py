"""Text embeddings: by contrast, vectors of texts that belong together come close and others move away; or what is said
of pairs is told from their vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from etymon.config import Config
from etymon.data import Encoded, Record, RecordBatch
from etymon.errors import ConfigError, DataError
from etymon.nn import Model, pool, whole_texts
from etymon.nn.siamese import PairSoftmax
from etymon.objectives.objective import Objective, ObjectiveConfig, Reads, class_rights
from etymon.objectives.texts import Labels, PoolingName, class_of, framed, pooling_named, require_head, score_of
from etymon.spec import Embedding, ModelSpec
from etymon.text import Tokenizer

Temperature = Annotated[float, Field(gt=0, le=10)]


class SimCSE(Config):
    """A text is its own pair: both readings differ by dropout alone, which training must have (Gao et al. 2021,
    arXiv:2104.08821). All other texts of the batch are negatives."""

    kind: Literal["simcse"] = "simcse"
    temperature: Temperature = 0.05


class Ranking(Config):
    """Of all second texts of the batch, and all negatives that rows bring, a first text is to find its own: SBERT's
    multiple negatives ranking (arXiv:1908.10084), and SimCSE with supervision. A scale of 20 is this temperature."""

    kind: Literal["ranking"] = "ranking"
    temperature: Temperature = 0.05


class CoSENT(Config):
    """Pairs whose label is higher are to have the higher cosine: log(1 + Σ exp(scale (cos_i - cos_j))) over all pairs i
    with a lower label than j (Su 2022, https://kexue.fm/archives/8847)."""

    kind: Literal["cosent"] = "cosent"
    scale: float = Field(default=20.0, gt=0, le=1000)


class CosineRegression(Config):
    """A pair's cosine is to be its label, by the squared error (SBERT, arXiv:1908.10084)."""

    kind: Literal["cosine"] = "cosine"


class Softmax(Config):
    """A pair's class is told by a softmax layer from u, v and |u - v|, its vectors before they are brought to length 1:
    SBERT's classification objective, for natural language inference (Reimers & Gurevych 2019, arXiv:1908.10084, section
    3). The layer is a companion, which the model goes on without. `labels` are the classes, as the rows call them."""

    kind: Literal["softmax"] = "softmax"
    labels: Labels


ContrastiveLoss = Annotated[SimCSE | Ranking | CoSENT | CosineRegression | Softmax, Field(discriminator="kind")]


class ContrastiveConfig(ObjectiveConfig):
    """`loss` says what is compared, `pooling` which state stands for a text (default: the mean of an encoder, of a
    decoder one weighted by place); the model keeps it. `query` and `passage` stand before and behind first texts and
    all others: SGPT's brackets (arXiv:2202.08904), or prefixes."""

    kind: Literal["contrastive"] = "contrastive"
    loss: ContrastiveLoss = Ranking()
    pooling: PoolingName | None = None
    query: tuple[str, str] = ("", "")
    passage: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Contrastive(Objective):
    """The losses of text embeddings. Rows are compared with one another, so that the batch is one: `micro_batch` rows
    pass the model at a time, once without and once with what backward needs, with the same random numbers (GradCache,
    Gao et al. 2021, arXiv:2101.06983), which changes nothing of the gradient.
    """

    name: ClassVar[str] = "contrastive"
    reads: ClassVar[Reads] = "pairs"
    spec: ModelSpec
    config: ContrastiveConfig = ContrastiveConfig()
    softmax: PairSoftmax | None = None
    micro_batch: int | None = None

    @classmethod
    def trains(cls, spec: ModelSpec, config: ContrastiveConfig) -> ModelSpec:
        """Return the model with a head that gives vectors, unless it has one and the pooling is left to it."""
        if isinstance(spec.head, Embedding) and config.pooling is None:
            return spec
        pooling = config.pooling or ("weighted_mean" if spec.encoder is None else "mean")
        return dataclasses.replace(spec, head=Embedding(pooling=pooling_named(pooling)))

    @classmethod
    def check(cls, spec: ModelSpec, config: ContrastiveConfig) -> None:
        """Raise ConfigError for a model that does not end in vectors."""
        require_head(cls.name, spec, cls.trains(spec, config))

    @classmethod
    def of(cls, spec: ModelSpec, tokenizer: Tokenizer, config: ContrastiveConfig) -> Self:
        """Return the objective; any tokenizer will do."""
        loss = config.loss
        return cls(spec, config, PairSoftmax(spec.width, len(loss.labels)) if isinstance(loss, Softmax) else None)

    @property
    def settings(self) -> dict[str, Any]:
        """The loss and what stands around texts; the pooling is the model's."""
        return self.config.model_dump(mode="json", exclude={"kind", "pooling"})

    @classmethod
    def check_record(cls, record: Record, config: ContrastiveConfig) -> None:
        """Raise DataError where there are not as many texts as the loss compares, or not the label that it needs."""
        match config.loss:
            case SimCSE():
                fits, needs = len(record.texts) == 1, "one text, which is its own pair"
            case Ranking():
                fits, needs = len(record.texts) >= 2, "two texts, and perhaps negatives"
            case Softmax():
                fits, needs = len(record.texts) == 2, "two texts"
                class_of(record, config.loss.labels)
            case _:
                fits, needs = len(record.texts) == 2, "two texts"
                score_of(record, f"the loss {config.loss.kind}")
        if not fits:
            raise DataError(f"{record.id} has {len(record.texts)} texts; the loss {config.loss.kind} reads {needs}")

    def encode(self, tokenizer: Tokenizer, record: Record, context: int) -> Encoded:
        """Return every text as it is read alone, and the label."""
        self.check_record(record, self.config)
        texts, cuts = [], []
        for place, text in enumerate(record.texts):
            before, behind = self.config.passage if place else self.config.query
            framing, cut = framed(tokenizer, self.spec, tokenizer.encode(before + text + behind), None, context)
            texts.append(framing)
            cuts.append(cut)
        label: float = 0
        match self.config.loss:
            case Softmax(labels=labels):
                label = class_of(record, labels)
            case CoSENT() | CosineRegression() as loss:
                label = score_of(record, f"the loss {loss.kind}")
        return Encoded(tuple(texts), label, any(cuts))

    def collate(self, batch: RecordBatch, random: np.random.Generator) -> RecordBatch:
        """Return the batch; for SimCSE with every text twice. Raises DataError where it has no records."""
        if not isinstance(batch, RecordBatch):
            raise DataError(f"objective {self.name}: it trains on pairs of texts: use a RecordLoader")
        if not isinstance(self.config.loss, SimCSE):
            return batch
        ids, real, segments = (each.repeat(1, 2, 1) for each in (batch.input_ids, batch.real, batch.segments))
        return RecordBatch(ids, batch.targets, real, segments)

    def companions(self, model: Model) -> Mapping[str, PairSoftmax]:
        """Return the softmax layer, where the loss has one."""
        if self.softmax is None:
            return {}
        self.softmax.begin()
        return {"softmax": self.softmax.to(model.device)}

    def split(self, micro_batch: int | None) -> tuple[Objective, int | None]:
        """Return the objective that holds `micro_batch` rows at a time of a batch that is given whole."""
        return dataclasses.replace(self, micro_batch=micro_batch), None

    def loss(self, model: Model, batch: RecordBatch) -> Tensor:
        """Return the loss of the batch times its rows."""
        loss = self.config.loss
        if isinstance(loss, SimCSE) and model.training and not _drops(model):
            raise ConfigError("objective contrastive: the two readings of a text differ by dropout. Set dropout: 0.1")
        vectors = self.vectors(model, batch)
        match loss:
            case SimCSE() | Ranking():
                there = batch.real.any(2)
                candidates = torch.cat((vectors[:, 1], vectors[:, 2:][there[:, 2:]]))
                return ranking_loss(vectors[:, 0], candidates, loss.temperature)
            case CoSENT():
                cosines = F.cosine_similarity(vectors[:, 0], vectors[:, 1])
                return cosent_loss(cosines, batch.targets, loss.scale) * len(cosines)
            case CosineRegression():
                cosines = F.cosine_similarity(vectors[:, 0], vectors[:, 1])
                return F.mse_loss(cosines, batch.targets.float(), reduction="sum")
            case Softmax():
                assert self.softmax is not None, "of() makes it"
                return self.softmax.loss(vectors[:, 0], vectors[:, 1], batch.targets)

    def rights(self, model: Model, batch: RecordBatch) -> dict[str, tuple[Tensor, Tensor]]:
        """Return which pairs the softmax layer tells the class of, where the loss has one."""
        if self.softmax is None:
            return {}
        vectors = self.vectors(model, batch)
        return class_rights(self.softmax(vectors[:, 0], vectors[:, 1]), batch.targets)

    def vectors(self, model: Model, batch: RecordBatch) -> Tensor:
        """Return the vectors [rows, texts, dim] of the batch's texts in fp32, before the head brings them to length 1,
        `micro_batch` rows at a time."""
        rows = len(batch.input_ids)
        if self.micro_batch is None or self.micro_batch >= rows:
            return _read(model, batch.input_ids, batch.real, batch.segments)
        parts = [batch.rows(start, start + self.micro_batch) for start in range(0, rows, self.micro_batch)]
        given = [(model, part.input_ids, part.real, part.segments) for part in parts]
        return torch.cat([checkpoint(_read, *each, use_reentrant=False) for each in given])


def _read(model: Model, ids: Tensor, real: Tensor, segments: Tensor) -> Tensor:
    flat = real.flatten(0, 1)
    there = flat.any(1)
    hidden = whole_texts(model, ids.flatten(0, 1)[there], flat[there], segments.flatten(0, 1)[there])
    found = pool(model.head.pooling, hidden, flat[there]).float()  # type: ignore[arg-type]
    vectors = found.new_zeros(len(flat), found.shape[-1])
    return vectors.masked_scatter(there[:, None], found).view(*real.shape[:2], -1)


def ranking_loss(queries: Tensor, candidates: Tensor, temperature: float) -> Tensor:
    """Return Σ -log softmax(cos(query i, candidates) / temperature)[i] over queries [n, dim]; the first n of
    `candidates` [m, dim] are their own."""
    scores = F.normalize(queries, dim=-1) @ F.normalize(candidates, dim=-1).T / temperature
    return F.cross_entropy(scores, torch.arange(len(queries), device=scores.device), reduction="sum")


def cosent_loss(cosines: Tensor, labels: Tensor, scale: float) -> Tensor:
    """Return log(1 + Σ exp(scale (cosine i - cosine j))) over all i, j with label i < label j, all [n]."""
    differences = scale * (cosines[:, None] - cosines[None])[labels[:, None] < labels[None]]
    return torch.cat((differences.new_zeros(1), differences)).logsumexp(0)


def _drops(model: Model) -> bool:
    return any(isinstance(rate := getattr(module, "dropout", 0.0), float) and rate > 0 for module in model.modules())
