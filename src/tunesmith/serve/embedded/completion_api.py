"""`/v1/completions`: plain text or token ids, continued. What lm-evaluation-harness talks to."""

from __future__ import annotations

from typing import Any

from tunesmith.serve.embedded.answers import Envelope, Usage, completion_logprobs
from tunesmith.serve.embedded.checkpoint import Checkpoint
from tunesmith.serve.embedded.requests import BadRequest, parse_completion
from tunesmith.serve.embedded.sequence import Answer, Output, TokenLogprob


class CompletionExchange:
    """A completion request, the answers it asks the batch for, and the response that grows from them.

    Raises:
        BadRequest: the body is wrong, or a prompt does not fit into the model's length.
    """

    def __init__(self, checkpoint: Checkpoint, model: str, document: Any) -> None:
        request = parse_completion(document)
        self.wish, self._echo, self._checkpoint = request.wish, request.echo, checkpoint
        self.answers: list[Answer] = []
        self._texts: list[str] = []
        self._num_prompt = 0
        for prompt in request.prompts:
            ids = self._ids(prompt)
            text = (prompt if isinstance(prompt, str) else checkpoint.decode_all(ids)) if self._echo else ""
            self._num_prompt += len(ids)
            for choice in range(self.wish.num_choices):
                sampling = self.wish.sampling_for(len(ids), checkpoint.max_model_len, choice)
                self.answers.append(Answer(ids, sampling, checkpoint.eos_ids, checkpoint.decode_visible))
                self._texts.append(text)
        self._lengths = [0] * len(self.answers)  # characters given out, for text_offset
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in self.answers]
        self._reasons: list[str | None] = [None] * len(self.answers)
        self._envelope = Envelope("text_completion", model, "cmpl")

    def opening(self) -> list[dict[str, Any]]:
        """Return the first chunks: the echoed prompts."""
        return [self._chunk(i, text) for i, text in enumerate(self._texts) if text]

    def add(self, index: int, output: Output) -> list[dict[str, Any]]:
        """Take what a choice gained; return the chunk it makes."""
        self._texts[index] += output.text
        self._logprobs[index] += output.logprobs
        if output.finish_reason:
            self._reasons[index] = output.finish_reason
        if not self.wish.stream:
            return []
        chunk = self._chunk(index, output.text, output.finish_reason)
        if output.logprobs:
            shown = completion_logprobs(output.logprobs, self._token_text, self._lengths[index])
            self._lengths[index] += sum(len(token) for token in shown["tokens"])
            chunk["choices"][0]["logprobs"] = shown
        return [chunk]

    def closing(self) -> list[dict[str, Any]]:
        """Return the last chunk: the usage, when it was asked for."""
        return [self._envelope.wrap([], usage=self.usage.to_json())] if self.wish.include_usage else []

    def whole(self) -> dict[str, Any]:
        """Return the whole response of a finished exchange."""
        wants_logprobs = self.answers[0].sampling.num_logprobs is not None
        choices = [
            {
                "index": i,
                "text": text,
                "logprobs": completion_logprobs(self._logprobs[i], self._token_text, 0) if wants_logprobs else None,
                "finish_reason": self._reasons[i],
            }
            for i, text in enumerate(self._texts)
        ]
        return self._envelope.wrap(choices, usage=self.usage.to_json())

    @property
    def usage(self) -> Usage:
        """Tokens so far; all of them once every choice is finished."""
        return Usage(self._num_prompt, sum(len(answer.generated) for answer in self.answers))

    def _ids(self, prompt: str | list[int]) -> list[int]:
        if isinstance(prompt, str):
            ids = self._checkpoint.encode_text(prompt)
            if not ids:
                raise BadRequest("prompt is empty, and the tokenizer has no start token.", param="prompt")
            return ids
        limit = self._checkpoint.tokenizer.id_limit
        if not all(0 <= token_id < limit for token_id in prompt):
            raise BadRequest(f"prompt holds token ids outside 0 … {limit - 1}.", param="prompt")
        return prompt

    def _token_text(self, token_id: int) -> str:
        return self._checkpoint.decode_all([token_id])

    def _chunk(self, index: int, text: str, reason: str | None = None) -> dict[str, Any]:
        usage = {"usage": self.usage.to_json()} if self.wish.continuous_usage else {}
        choice = {"index": index, "text": text, "logprobs": None, "finish_reason": reason}
        return self._envelope.wrap([choice], **usage)
