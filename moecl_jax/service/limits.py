"""How much a service accepts, and how it refuses the rest."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a service accepts. Whatever exceeds a limit is refused at once or in a known time.

    Attributes:
      body_bytes: bytes of a request's body; more is answered by 413.
      body_seconds: time in which a body must arrive [s]; a slower client gets 408.
      texts: texts of a request; more is answered by 422.
      text_characters: characters of a text; a longer one is answered by 422.
      requests: requests that are open at the same time; further ones get 503.
      queue_texts: texts that wait for their answers; a request that would exceed them gets 503.
      caller_texts: texts of a single caller among them; a request that would exceed them gets 429.
      answer_seconds: time in which a request is answered [s]; where it is over, by 503.
      linger_seconds: how long an idle worker waits for a batch to be filled [s].
      drain_seconds: time from a signal to stop to the closing of idle connections [s], in which new
        requests are told to go elsewhere; the port is closed after half of it.
    """

    body_bytes: int = 4 * 2**20
    body_seconds: float = 10.0
    texts: int = 256
    text_characters: int = 20_000
    requests: int = 512
    queue_texts: int = 1024
    caller_texts: int = 512
    answer_seconds: float = 60.0
    linger_seconds: float = 0.003
    drain_seconds: float = 1.0


class Refused(Exception):
    """A request that is not answered, by this status and for this reason.

    Attributes:
      status: HTTP status.
      detail: what is wrong, and what to do, in one line.
      retry_after: seconds after which another try makes sense; None if it never does.
    """

    def __init__(self, status: int, detail: str, retry_after: int | None = None):
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers: `Retry-After` where another try makes sense (RFC 9110, 10.2.3)."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
