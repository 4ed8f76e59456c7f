"""`/v1/chat/completions`: one request and its choices."""

from __future__ import annotations

from typing import Any

from tunesmith.serve.embedded.answers import Envelope, Usage, chat_logprobs
from tunesmith.serve.embedded.chat_text import ChatText
from tunesmith.serve.embedded.checkpoint import Checkpoint
from tunesmith.serve.embedded.requests import BadRequest, parse_chat
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
        self.answers = [
            Answer(prompt, self.wish.sampling_for(len(prompt), checkpoint.max_model_len, i), checkpoint.eos_ids, decode)
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
        deltas = text.add(output.text)
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
