"""The knobs that hold for every request; single misdeeds are faults."""

from typing import Literal

import msgspec

LimitStyle = Literal["json", "message", "text"]


class Behaviour(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """All of it can be changed while the look-alike runs.

    Attributes:
        latency_seconds: wait before the headers of each response.
        bandwidth_bytes_per_second: of each connection; 0 is as fast as it goes.
        redirect_blobs: 307 to the CDN as Docker Hub does; otherwise the registry serves blobs itself.
        signed_url_seconds: how long the CDN accepts a signed URL.
        require_token: False lets everybody read public and private repositories without a token.
        token_seconds: how long a token really lives.
        announce_expiry: whether the token service says ``expires_in`` and ``issued_at``, which are optional.
        token_fields: the names under which the token is given: "token", "access_token" or both.
        untrusted_realm: the challenge names a token service on another host.
        deny_unknown_repositories: 401 for a repository that does not exist, as Docker Hub does; otherwise 404.
        pull_limit: manifest GETs per account or address; None is unlimited, and no ratelimit header is sent.
        limit_style: body of the 429: registry JSON, ``{"message": …}`` or plain text.
        retry_after_seconds: sent with the 429 unless None.
        login_failures_allowed: so many wrong passwords lock the account for ``lock_seconds``.
    """

    latency_seconds: float = 0.0
    bandwidth_bytes_per_second: int = 0
    redirect_blobs: bool = True
    signed_url_seconds: float = 600.0
    require_token: bool = True
    token_seconds: float = 300.0
    announce_expiry: bool = True
    token_fields: tuple[str, ...] = ("token", "access_token")
    untrusted_realm: bool = False
    deny_unknown_repositories: bool = True
    pull_limit: int | None = 200
    limit_window_seconds: int = 21600
    limit_style: LimitStyle = "json"
    retry_after_seconds: int | None = None
    login_failures_allowed: int = 5
    lock_seconds: float = 600.0
