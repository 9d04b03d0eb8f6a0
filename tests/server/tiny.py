"""A tiny service whose tokens are single bytes: any text can be said, and characters fall apart."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eaglerl.eagle3 import SpeculativeDecoder
from eaglerl.eagle3.packed_target import PackedTarget
from eaglerl.server import Limits, Modes, Service, standard_modes

from ..eagle3.tiny import tiny_head, tiny_model

NAME = "tiny"
END = "<|end|>"
_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' and loop.first %}"
    "{{ raise_exception('the user speaks first') }}{% endif %}"
    "{{ message['role'][0] + ':' + message['content'] + '\n' }}{% endfor %}a:"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token for every byte, and one that ends a text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, chat_template=_TEMPLATE
    )


def tiny_decoder(*, seed: int = 0, logit_scale: float = 6.0) -> SpeculativeDecoder:
    """A random target of 257 tokens that repeats itself, so that lookups are right at times."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), seed=seed, logit_scale=logit_scale)
    # So few tokens are likely that what is drafted of them is right now and then.
    likely = torch.zeros(len(tokenizer), dtype=torch.bool)
    likely[tokenizer("aeinrst ").input_ids] = True
    with torch.no_grad():
        model.get_output_embeddings().weight[~likely] *= 0.05
    target = PackedTarget(model)
    target.generation_config.eos_token_id = tokenizer.eos_token_id
    drafted = likely.nonzero().flatten()
    drafted = torch.cat((drafted, torch.arange(24 - len(drafted)))).sort().values
    head = tiny_head(target, draft_vocab_size=len(drafted), seed=seed)
    head.set_draft_vocabulary(drafted)
    return SpeculativeDecoder(target, head, draft_dtype="float32", tokenizer=tokenizer)


def tiny_service(**limits: object) -> Service:
    """A service of `tiny_decoder`."""
    modes = Modes(standard_modes(), "best-constant")
    return Service(
        tiny_decoder(), modes, model_name=NAME, limits=Limits(**limits), draft_dtype="float32"
    )
