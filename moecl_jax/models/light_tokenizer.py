"""A tokenizer that needs only the package tokenizers, and transformers for what is rarely asked."""

import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, Union

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing

from moecl_jax import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

AnyTokenizer: TypeAlias = Union["PreTrainedTokenizerBase", "LightTokenizer"]

IN_USE = threading.Lock()
"""Is held while a tokenizer is told how to read special tokens and then reads: threads share it."""

_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")  # in the order of transformers


class LightTokenizer:
    """Texts to token ids and back, as a `transformers.PreTrainedTokenizerFast` does it.

    Importing transformers takes half a second, which every command would wait for. What is not
    defined here (chat templates, saving, ...) is looked up in `whole`, the tokenizer of
    transformers, which is made when it is first needed.

    Attributes:
      backend_tokenizer: the tokenizer of the package tokenizers.
      chat_template: Jinja template of chats, or None.
      special_tokens_map: the tokens that have a role, by role: "bos_token", "eos_token",
        "unk_token", "pad_token".
    """

    is_fast = True
    split_special_tokens = False

    def __init__(
        self,
        core: Tokenizer,
        roles: Mapping[str, str],
        special: Sequence[str],
        chat_template: str | None,
    ) -> None:
        """Makes the tokenizer; `core` gets the special tokens that it lacks.

        Args:
          core: the tokenizer of the package tokenizers.
          roles: the tokens that have a role, as in `special_tokens_map`.
          special: other special tokens; those of `roles` may be among them.
          chat_template: Jinja template of chats, or None.
        """
        self.special_tokens_map = {role: roles[role] for role in _ROLES if role in roles}
        self.backend_tokenizer = core
        self.chat_template = chat_template
        self._special = tuple(special)
        self._whole: Any = None
        added = {token.content for token in core.get_added_tokens_decoder().values()}
        missing = [token for token in self.all_special_tokens if token not in added]
        core.add_special_tokens([AddedToken(token, special=True) for token in missing])
        if core.post_processor is None:  # as transformers has it, so that the two are equal
            core.post_processor = TemplateProcessing(
                single="$A:0", pair="$A:0 $B:1", special_tokens=[]
            )

    def replace_backend(self, core: Tokenizer) -> None:
        """Takes another `backend_tokenizer`; special tokens that it lacks are no longer special.

        Args:
          core: the tokenizer of the package tokenizers; it has all tokens with a role.
        """
        self.backend_tokenizer = core
        self._special = tuple(t for t in self._special if core.token_to_id(t) is not None)
        self._whole = None

    @property
    def whole(self) -> Any:
        """The same tokenizer as a `transformers.PreTrainedTokenizerFast`."""
        if self._whole is None:
            with quiet.transformers():
                from transformers import PreTrainedTokenizerFast
            self._whole = PreTrainedTokenizerFast(
                tokenizer_object=self.backend_tokenizer,
                chat_template=self.chat_template,
                clean_up_tokenization_spaces=False,
                extra_special_tokens=list(self._special),
                **self.special_tokens_map,
            )
        return self._whole

    def __getattr__(self, name: str) -> Any:
        """Looks up in `whole` what is not defined here."""
        if name.startswith("_"):  # also while an object is being copied, when it has no attributes
            raise AttributeError(name)
        return getattr(self.whole, name)

    def __len__(self) -> int:
        """Number of tokens, with the added ones."""
        return self.backend_tokenizer.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token(self) -> str | None:
        """Token at the beginning of a sequence."""
        return self.special_tokens_map.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """Token at the end of a sequence."""
        return self.special_tokens_map.get("eos_token")

    @property
    def unk_token(self) -> str | None:
        """Token that stands for what is not in the vocabulary."""
        return self.special_tokens_map.get("unk_token")

    @property
    def eos_token_id(self) -> int | None:
        """Id of `eos_token`."""
        return None if self.eos_token is None else self._id(self.eos_token)

    @property
    def unk_token_id(self) -> int | None:
        """Id of `unk_token`."""
        return None if self.unk_token is None else self._id(self.unk_token)

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens, each once: first those that have a role."""
        return list(dict.fromkeys((*self.special_tokens_map.values(), *self._special)))

    @property
    def all_special_ids(self) -> list[int]:
        """Ids of `all_special_tokens`."""
        return [self._id(token) for token in self.all_special_tokens]

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Tokens that are cut out of a text before all else, by their ids."""
        return self.backend_tokenizer.get_added_tokens_decoder()

    def get_vocab(self) -> dict[str, int]:
        """Ids of all tokens, with the added ones."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """What `whole` gives, a `transformers.BatchEncoding`."""
        return self.whole(*arguments, **options)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text.

        Args:
          text: any text.
          add_special_tokens: whether to add tokens around it, such as a beginning of sequence.
        """
        core = self.backend_tokenizer
        with IN_USE:
            core.encode_special_tokens = False
            return list(core.encode(text, add_special_tokens=add_special_tokens).ids)

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = False) -> str:
        """The text of token ids.

        Args:
          ids: token ids.
          skip_special_tokens: whether to leave special tokens out.
        """
        return self.backend_tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def _id(self, token: str) -> int:
        index = self.backend_tokenizer.token_to_id(token)
        if index is None:
            raise KeyError(f"the tokenizer has no token {token!r}")
        return int(index)
