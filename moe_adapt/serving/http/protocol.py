"""What requests look like, and the error object of OpenAI's protocol."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["ChatRequest", "ClassifyRequest", "Refusal", "text_of"]


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        message: What was wrong and what to do.
        code: Short word for programs.
        param: The field that was wrong.
    """

    def __init__(self, status: int, message: str, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param

    def body(self) -> dict[str, Any]:
        """Return the protocol's error object."""
        kind = "server_error" if self.status >= 500 else "rate_limit_error"
        kind = kind if self.status >= 500 or self.status == 429 else "invalid_request_error"
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")
    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[_Part] | None = None


class StreamOptions(BaseModel):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(BaseModel):
    """``POST /v1/chat/completions``; fields that are not known are ignored, as OpenAI does."""

    model_config = ConfigDict(extra="ignore")
    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = Field(default=1, ge=1, le=1)
    domain: str | None = None


class ClassifyRequest(BaseModel):
    """``POST /classify``."""

    model_config = ConfigDict(extra="forbid")
    model: str | None = None
    inputs: str | list[str | list[str]]
    top: int = Field(default=1, ge=1, le=1000)
    domain: str | None = None


def text_of(content: str | list[Any] | None) -> str:
    """Return the text of a message's content."""
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(part.text for part in content)
