"""A tiny service whose tokens are single bytes: any text can be said, and characters fall apart."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import uvicorn
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from eaglerl.eagle3 import NO_DRAFT, ConstantPolicy, CycleState, SpeculativeDecoder, TreeParams
from eaglerl.eagle3.target.packed_target import packed_target
from eaglerl.server import Limits, Mode, Modes, Service, create_app, standard_modes

from ..eagle3.tiny import tiny_head, tiny_model

NAME = "tiny"
#: Seconds after which a test gives up waiting; nothing is expected to take as long.
PATIENCE = 120.0
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


def tiny_parts(*, seed: int = 0):
    """A random model of 257 tokens that repeats itself, so that lookups are right at times; and
    the tokens that a head for it may draft."""
    tokenizer = byte_tokenizer()
    model = tiny_model(vocab_size=len(tokenizer), seed=seed, logit_scale=6.0)
    # So few tokens are likely that what is drafted of them is right now and then.
    likely = torch.zeros(len(tokenizer), dtype=torch.bool)
    likely[tokenizer("aeinrst ").input_ids] = True
    with torch.no_grad():
        model.get_output_embeddings().weight[~likely] *= 0.05
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    drafted = likely.nonzero().flatten()
    drafted = torch.cat((drafted, torch.arange(24 - len(drafted)))).sort().values
    return model, tokenizer, drafted


def tiny_decoder(*, seed: int = 0) -> SpeculativeDecoder:
    """A decoder of `tiny_parts`."""
    model, tokenizer, drafted = tiny_parts(seed=seed)
    target = packed_target(model)
    target.generation_config.eos_token_id = tokenizer.eos_token_id
    head = tiny_head(target, draft_vocab_size=len(drafted), seed=seed)
    head.set_draft_vocabulary(drafted)
    return SpeculativeDecoder(target, head, draft_dtype="float32", tokenizer=tokenizer)


def tiny_folders(root: Path) -> tuple[Path, Path]:
    """The same on disk: folders of the target and of the head."""
    model, tokenizer, _ = tiny_parts()
    model.config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(root / NAME)
    tokenizer.save_pretrained(root / NAME)
    tiny_decoder().draft_head.save_pretrained(root / "head")
    return root / NAME, root / "head"


def tiny_service(*more_modes: Mode, **limits: object) -> Service:
    """A service of `tiny_decoder`."""
    modes = Modes([*standard_modes(), *more_modes], "best-constant")
    return Service(tiny_decoder(), modes, model_name=NAME, limits=Limits(**limits))


@contextmanager
def serving(service: Service) -> Iterator[str]:
    """Serve on a free port, and give the address."""
    config = uvicorn.Config(create_app(service), port=0, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(30)
    assert not thread.is_alive()


class Slow(ConstantPolicy):
    """A policy whose cycles take 20 ms at least, so that what is asked for lasts."""

    def choose(self, state: CycleState) -> TreeParams:
        time.sleep(0.02)
        return super().choose(state)


def greedy_text(prompt: str, new_tokens: int, decoder: SpeculativeDecoder | None = None) -> str:
    """What plain greedy decoding writes after a prompt."""
    decoder = decoder or tiny_decoder()
    ids = decoder.tokenizer(prompt).input_ids
    output = decoder.generate([ids], NO_DRAFT, max_new_tokens=new_tokens)
    return decoder.tokenizer.decode(output.sequences[0, len(ids) :])


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
