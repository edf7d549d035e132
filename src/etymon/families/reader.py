"""Reading a published `config.json` so that no key is silently defaulted or overlooked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from etymon.errors import ConfigError, suggest

T = TypeVar("T")
REQUIRED: Any = object()

# Keys that do not change the function a model computes: bookkeeping, training-time regularisation, generation defaults.
IGNORABLE = frozenset(
    """
    architectures auto_map dtype torch_dtype transformers_version use_cache model_type _name_or_path
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id tokenizer_class
    initializer_range initializer_factor attention_dropout attn_pdrop embd_pdrop resid_pdrop hidden_dropout
    output_attentions output_hidden_states return_dict torchscript gradient_checkpointing chunk_size_feed_forward
    id2label label2id num_labels problem_type task_specific_params finetuning_task is_decoder is_encoder_decoder
    max_length min_length do_sample temperature top_k top_p typical_p num_beams num_beam_groups diversity_penalty
    early_stopping repetition_penalty length_penalty no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids
    num_return_sequences remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens
    forced_bos_token_id forced_eos_token_id prefix output_scores return_dict_in_generate cross_attention_hidden_size
    add_cross_attention tie_encoder_decoder pruned_heads tf_legacy_loss use_bfloat16 attn_implementation
    _attn_implementation_autoset hidden_dropout_prob attention_probs_dropout_prob classifier_dropout
    classifier_dropout_prob classif_dropout dropout activation_dropout dropout_rate encoder_layerdrop decoder_layerdrop
    init_std summary_type summary_use_proj summary_activation summary_first_dropout summary_last_dropout
    summary_proj_to_labels gradient_checkpointing
    """.split()
)


class ConfigReader:
    """A JSON object that is consumed key by key; `finish` fails on keys that nobody read."""

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.where = where
        self._left = dict(values)
        self._seen: list[str] = []

    def __contains__(self, key: str) -> bool:
        return key in self._left

    def take(self, key: str, kind: type[T], default: Any = REQUIRED) -> T:
        """Consume `key`; a missing key gives `default`, and null too where there is one.

        Raises ConfigError when a required key is missing or a value has the wrong type.
        """
        self._seen.append(key)
        value = self._left.pop(key, None)
        if value is None:
            if default is REQUIRED:
                raise ConfigError(f"{self.where}: the key {key!r} is missing")
            return default
        if kind is float and isinstance(value, int) and not isinstance(value, bool):
            return float(value)  # type: ignore[return-value]
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ConfigError(f"{self.where}: {key} = {value!r} should be {kind.__name__}")
        return value

    def section(self, key: str) -> ConfigReader | None:
        """Consume `key` as a nested object with a reader of its own, or return None where it is absent or null."""
        value = self.take(key, dict, None)
        return None if value is None else ConfigReader(value, f"{self.where}: {key}")

    def skip(self, *keys: str) -> None:
        """Consume keys that change nothing in what the model computes."""
        for key in keys:
            self.take(key, object, None)

    def same(self, key: str, other: str) -> None:
        """Let `other` be another name for `key`. Raises ConfigError where both are there and differ."""
        value = self._left.pop(other, None)
        self._seen.append(other)
        if value is not None and self._left.setdefault(key, value) != value:
            raise ConfigError(
                f"{self.where}: {key} = {self._left[key]!r} but {other} = {value!r}, which means the same"
            )

    def expect(self, key: str, *values: Any) -> None:
        """Consume `key`, which when present must have one of these values: others are not supported."""
        self._seen.append(key)
        value = self._left.pop(key, values[0])
        if value not in values:
            wanted = " or ".join(map(repr, values))
            raise ConfigError(f"{self.where}: {key} = {value!r} is not supported here (only {wanted})")

    def finish(self, ignorable: Iterable[str] = ()) -> None:
        """Raise ConfigError naming the keys that nobody read, unless they are known not to matter."""
        unread = sorted(self._left.keys() - IGNORABLE - set(ignorable))
        if unread:
            hint = suggest(unread[0], self._seen)
            raise ConfigError(
                f"{self.where}: nobody reads the key{'s' if len(unread) > 1 else ''} {', '.join(map(repr, unread))}; "
                f"a model that ignored it would be a different model.{hint} Remove the key if it has no effect."
            )
