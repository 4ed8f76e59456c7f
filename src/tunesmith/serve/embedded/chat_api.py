"""`/v1/chat/completions`: one request and its choices."""

from __future__ import annotations

from typing import Any

from tunesmith.serve.embedded.answers import Envelope, Usage, chat_logprobs
from tunesmith.serve.embedded.chat_text import ChatText
from tunesmith.serve.embedded.checkpoint import Checkpoint
from tunesmith.serve.embedded.forced import CallForm, Guide, call_form
from tunesmith.serve.embedded.requests import BadRequest, ChatRequest, parse_chat
from tunesmith.serve.embedded.sequence import Answer, Output, TokenLogprob


class ChatExchange:
    """A chat request, the answers it asks the batch for, and the response that grows from them.

    Raises:
        BadRequest: the body is wrong, or does not fit into the model's length.
        TemplateProblem: the chat template refuses the conversation.
    """

    def __init__(self, checkpoint: Checkpoint, model: str, document: Any) -> None:
        request = parse_chat(document)
        if checkpoint.template is None:
            raise BadRequest("The model has no chat template: use /v1/completions.", param="messages")
        self.wish = request.wish
        self._checkpoint = checkpoint
        prompt = checkpoint.encode_chat(request.messages, request.tools)
        finds_calls = bool(request.tools)
        decode = checkpoint.decode_all if finds_calls else checkpoint.decode_visible
        self._form = _form(checkpoint, request)
        self.answers = [
            Answer(
                prompt,
                self.wish.sampling_for(len(prompt), checkpoint.max_model_len, i),
                checkpoint.eos_ids,
                decode,
                _guide(checkpoint, request, self._form),
            )
            for i in range(self.wish.num_choices)
        ]
        self._texts = [
            ChatText(
                finds_calls=finds_calls,
                one_call=not request.parallel_tool_calls,
                streams=self.wish.stream,
                clean=self._without_special,
            )
            for _ in self.answers
        ]
        self._reasons: list[str | None] = [None] * len(self.answers)
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in self.answers]
        self._num_prompt = len(prompt)
        kind = "chat.completion.chunk" if self.wish.stream else "chat.completion"
        self._envelope = Envelope(kind, model, "chatcmpl")

    def opening(self) -> list[dict[str, Any]]:
        """Return the first chunks: who speaks."""
        return [self._chunk(i, {"role": "assistant", "content": ""}) for i in range(len(self.answers))]

    def add(self, index: int, output: Output) -> list[dict[str, Any]]:
        """Take what a choice gained; return the chunks it makes."""
        text = self._texts[index]
        guide = self.answers[index].guide
        is_whole_call = bool(self._form and output.finish_reason and guide and guide.is_done)
        # The model stops behind the arguments; what closes a call says nothing.
        deltas = text.add(output.text + (self._form.after if self._form and is_whole_call else ""))
        self._logprobs[index] += output.logprobs
        if output.finish_reason:
            deltas += text.finish()
            self._reasons[index] = text.finish_reason(output.finish_reason)
        if not self.wish.stream:
            return []
        if output.logprobs and not deltas:
            deltas = [{"content": ""}]
        chunks = [self._chunk(index, delta) for delta in deltas]
        if output.logprobs:
            chunks[0]["choices"][0]["logprobs"] = self._shown(output.logprobs)
        return chunks + ([self._chunk(index, {}, self._reasons[index])] if output.finish_reason else [])

    def closing(self) -> list[dict[str, Any]]:
        """Return the last chunk: the usage, when it was asked for."""
        return [self._envelope.wrap([], usage=self.usage.to_json())] if self.wish.include_usage else []

    def whole(self) -> dict[str, Any]:
        """Return the whole response of a finished exchange."""
        choices = [
            {
                "index": i,
                "message": text.message(),
                "logprobs": self._shown(self._logprobs[i]) if self._wants_logprobs else None,
                "finish_reason": self._reasons[i],
            }
            for i, text in enumerate(self._texts)
        ]
        return self._envelope.wrap(choices, usage=self.usage.to_json())

    @property
    def usage(self) -> Usage:
        """Tokens so far; all of them once every choice is finished."""
        return Usage(self._num_prompt, sum(len(answer.generated) for answer in self.answers))

    @property
    def _wants_logprobs(self) -> bool:
        return self.answers[0].sampling.num_logprobs is not None

    def _shown(self, logprobs: list[TokenLogprob]) -> dict[str, Any]:
        return chat_logprobs(logprobs, lambda token_id: self._checkpoint.decode_all([token_id]))

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        usage = {"usage": self.usage.to_json()} if self.wish.continuous_usage else {}
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._envelope.wrap([choice], **usage)

    def _without_special(self, text: str) -> str:
        for special in self._checkpoint.tokenizer.special_texts:
            text = text.replace(special, "")
        return text


def _form(checkpoint: Checkpoint, request: ChatRequest) -> CallForm | None:
    if not request.forced:
        return None
    assert checkpoint.template is not None
    form = call_form(checkpoint.template, request.tools)
    if form is None:
        message = "tool_choice cannot force a call: the model's chat template does not write calls as JSON."
        raise BadRequest(message, param="tool_choice")
    return form


def _guide(checkpoint: Checkpoint, request: ChatRequest, form: CallForm | None) -> Guide | None:
    if form is None:
        return Guide((), (), checkpoint.pieces) if request.wants_object else None
    if len(request.forced) == 1:
        return Guide(checkpoint.tokenizer.encode(form.before + request.forced[0] + form.between), (), checkpoint.pieces)
    options = [name + form.between for name in request.forced]
    return Guide(checkpoint.tokenizer.encode(form.before), options, checkpoint.pieces)
