"""What an operator may choose about a hosted exchange."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from academy.exchange.cloud.operations.settings import Settings
from academy.exchange.cloud.security.auth import (
    DEFAULT_NAMESPACE,
    Authority,
    Lifetimes,
    TokenAuthority,
    check_namespace,
)
from academy.exchange.cloud.security.auth_store import AuthStore, FileAuthStore
from academy.exchange.cloud.security.keys import KeySet
from academy.exchange.cloud.security.open_authority import OpenAuthority
from academy.exchange.cloud.security.revocations import Revocations
from academy.exchange.mailbox import Limits
from academy.home import get_academy_home, local_directory, private_directory

if TYPE_CHECKING:
    from academy.exchange.cloud.globus.identities import GlobusIdentities
    from academy.exchange.cloud.security.certificate import Certificate
    from academy.exchange.store import Store
    from academy.exchange.store.redis_server import RedisServer


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AuthConfig(_Section):
    """How clients prove who they are.

    Attributes:
        method: "token" (signed tokens), "globus" (these, and Globus Auth to log in),
            or "none" (everybody may do everything, which has to be asked for).
        key_file: the keys that sign tokens; made (mode 0600) where there are none.
            What is revoked lies beside it (`exchange.revoked`), or in Redis where that
            is the backend. Default: also in Redis there, and elsewhere `exchange.key`
            under the Academy home.
        token_lifetime: seconds that the token of a connection is good for; it is
            renewed while the connection lives.
        reconnect_grace: seconds after that within which the connection may come back.
        launch_lifetime: seconds that an agent may wait in a queue, and may be started
            again, with the token that it was launched with.
        user_lifetime: seconds that a user's token is good for.
        globus_cache: seconds after which Globus is asked again whose a token is.
    """

    method: Literal["token", "globus", "none"] = "token"
    key_file: Path | None = None
    token_lifetime: float = Field(default=Lifetimes.session, gt=0)
    reconnect_grace: float = Field(default=Lifetimes.grace, ge=0)
    launch_lifetime: float = Field(default=Lifetimes.launch, gt=0)
    user_lifetime: float = Field(default=Lifetimes.user, gt=0)
    globus_cache: float = Field(default=30, ge=0)

    def authority(self, redis: RedisServer | None = None) -> Authority:
        """Make the authority that this section describes; it is to be refreshed.

        Args:
            redis: what several servers share, if there are several.
        """
        if self.method == "none":
            return OpenAuthority()
        path = self.key_file or get_academy_home() / "exchange.key"
        files = FileAuthStore(path.expanduser())
        shared: AuthStore = files
        if redis is not None:
            from academy.exchange.cloud.security.redis_auth_store import RedisAuthStore

            shared = RedisAuthStore(redis)
        keys = KeySet(shared if self.key_file is None else files)
        lifetimes = Lifetimes(
            session=self.token_lifetime,
            launch=self.launch_lifetime,
            user=self.user_lifetime,
            grace=self.reconnect_grace,
        )
        return TokenAuthority(keys, Revocations(shared), lifetimes)

    def globus(self) -> GlobusIdentities | None:
        """Make what asks Globus whose a token is, if that is asked.

        Raises:
            ValueError: the environment lacks the exchange's secret.
        """
        if self.method != "globus":
            return None
        from academy.exchange.cloud.globus.identities import GlobusIdentities

        return GlobusIdentities(self.globus_cache)


class BackendConfig(_Section):
    """Where mailboxes and messages are kept.

    Attributes:
        kind: "sqlite" (a file), "redis" (shared by several servers), or "memory"
            (also spelled "python"; ends with the process).
        path: the SQLite file of the default namespace, on a local disk; another
            one's has its name before the suffix. Default: `exchange.db` under the
            Academy home, or under /var/tmp if the home is on a network file system.
        durability: "process" survives the death of any process, "power" a power cut
            as well, at the price of a wait for the disk.
        url: of Redis: redis://, rediss:// or unix://, with its password if it has one.
        prefix: what the names of all keys in Redis begin with.
        patience: seconds to wait for a Redis that restarts before clients are told.
        replicas: of Redis that have to have what is confirmed.
        lease_seconds: after which another server takes over from one that has died.
        idle_seconds: after which a namespace that nobody uses is given up.
        advertise: url of this server for the other ones. Default: the one it prints.
    """

    kind: Literal["sqlite", "redis", "memory"] = "sqlite"
    path: Path | None = None
    durability: Literal["process", "power"] = "process"
    url: SecretStr | None = None
    prefix: str = Field(default="academy", pattern=r"^[^{}]+$")
    patience: float = Field(default=10, ge=0)
    replicas: int = Field(default=0, ge=0)
    lease_seconds: float = Field(default=3, gt=0)
    idle_seconds: float = Field(default=300, gt=0)
    advertise: str | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "redis" and self.url is None:
            raise ValueError('kind = "redis" needs its url = "redis://…"')
        return self

    def redis(self) -> RedisServer:
        """Make the connections to Redis."""
        from academy.exchange.store.redis_server import RedisServer

        assert self.url is not None
        return RedisServer(
            self.url.get_secret_value(),
            patience=self.patience,
            replicas=self.replicas,
            prefix=self.prefix,
        )

    @field_validator("kind", mode="before")
    @classmethod
    def _old_name(cls, kind: object) -> object:
        return "memory" if kind == "python" else kind

    def store(self, namespace: str = DEFAULT_NAMESPACE) -> Store:
        """Make the store of a namespace, for an exchange of one server."""
        if self.kind == "memory":
            from academy.exchange.store.memory import MemoryStore

            return MemoryStore()
        from academy.exchange.store.sqlite import SqliteStore

        if self.path is not None:
            path = self.path.expanduser()
        else:
            path = private_directory(local_directory()) / "exchange.db"
        if namespace != DEFAULT_NAMESPACE:
            path = path.with_name(f"{path.stem}-{namespace}{path.suffix}")
        return SqliteStore(path, self.durability)


class NamespaceConfig(_Section):
    """What is refused to a namespace (see `academy.exchange.mailbox.Limits`)."""

    max_message_bytes: int = Field(default=Limits.max_message_bytes, gt=0)
    max_mailbox_messages: int = Field(default=Limits.max_mailbox_messages, gt=0)
    max_mailbox_bytes: int = Field(default=Limits.max_mailbox_bytes, gt=0)
    message_lifetime: float = Field(default=Limits.message_lifetime, ge=0)
    tombstone_lifetime: float = Field(default=Limits.tombstone_lifetime, ge=0)
    max_namespace_mailboxes: int = Field(default=0, ge=0)
    max_namespace_messages: int = Field(default=0, ge=0)
    max_namespace_bytes: int = Field(default=0, ge=0)
    max_namespace_connections: int = Field(default=0, ge=0)
    messages_per_second: float = Field(default=0, ge=0)
    bytes_per_second: float = Field(default=0, ge=0)
    burst_seconds: float = Field(default=Limits.burst_seconds, gt=0)


class LimitsConfig(NamespaceConfig):
    """What the exchange refuses to all namespaces that nothing else is said about."""

    spill_bytes: int = Field(default=Limits.spill_bytes, ge=4096)

    def broker_limits(self) -> Limits:
        """Return the limits in the broker's words."""
        return Limits(**self.model_dump())


class LoggerConfig(_Section):
    """What the server logs, to standard error.

    Attributes:
        level: a name of a level, or its number.
        format: "text" for people, or "json" for programs: an object per line.
    """

    level: str | int = "INFO"
    format: Literal["text", "json"] = "text"

    @field_validator("level")
    @classmethod
    def _known(cls, level: str | int) -> str | int:
        names = logging.getLevelNamesMapping()
        if isinstance(level, str) and level.upper() not in names:
            raise ValueError(f"levels are {', '.join(names)}")
        return level.upper() if isinstance(level, str) else level


class OperationsConfig(_Section):
    """What operators ask for.

    Attributes:
        metrics: who may read `/metrics`: "local" (programs on the same machine, and
            whoever shows a user's token), "token" (the latter only), "open"
            (everybody), or "off".
        drain_seconds: how long it may take to end in order.
    """

    metrics: Literal["local", "token", "open", "off"] = "local"
    drain_seconds: float = Field(default=10, gt=0)


class ExchangeServingConfig(_Section):
    """A hosted exchange.

    Attributes:
        host: address to listen on; "0.0.0.0" for all.
        port: port to listen on; 0 for any free one.
        name: by which programs of whoever runs it find it, wherever it is.
        insecure: the same as `auth.method = "none"` and `tls = false`.
        tls: serve https; false for http, behind a proxy that speaks https for it.
        certfile: certificate (PEM) of an authority that clients trust. Default: one
            that the exchange makes for itself and clients pin.
        keyfile: its key. Default: it is in `certfile`.
        heartbeat_interval: seconds of silence after which a client is asked whether it
            is there; it then has half of that again to say so.
        auth: how clients prove who they are.
        backend: where mailboxes and messages are kept.
        limits: what is refused.
        namespaces: what single namespaces are refused instead, by their names.
        logger: what is logged.
        operations: what operators ask for.
    """

    host: str = "127.0.0.1"
    port: int = Field(default=8700, ge=0, le=65535)
    name: str | None = None
    insecure: bool = False
    tls: bool = True
    certfile: Path | None = None
    keyfile: Path | None = None
    heartbeat_interval: float = Field(default=10, gt=0)
    auth: AuthConfig = Field(default_factory=AuthConfig)
    backend: BackendConfig = Field(default_factory=BackendConfig)
    limits: LimitsConfig = Field(default_factory=LimitsConfig)
    namespaces: dict[str, NamespaceConfig] = Field(default_factory=dict)
    logger: LoggerConfig = Field(default_factory=LoggerConfig)
    operations: OperationsConfig = Field(default_factory=OperationsConfig)

    def authority(self) -> Authority:
        """Make what issues and checks tokens; it is to be refreshed, and closed."""
        shared = self.backend.redis() if self.backend.kind == "redis" else None
        return self.auth.authority(shared)

    def broker_limits(self, namespace: str | None = None) -> Limits:
        """Return the limits of a namespace, or of all others, in the broker's words."""
        limits = self.limits.broker_limits()
        if namespace is not None:
            own = self.namespaces[namespace]
            limits = replace(limits, **own.model_dump(exclude_unset=True))
        return limits

    def model_post_init(self, _: object) -> None:
        """Let `insecure` say what `auth.method` and `tls` say."""
        if self.insecure:
            self.auth = AuthConfig(method="none")
            self.tls = self.certfile is not None

    @field_validator("namespaces")
    @classmethod
    def _can_be_called(
        cls, namespaces: dict[str, NamespaceConfig]
    ) -> dict[str, NamespaceConfig]:
        for name in namespaces:
            check_namespace(name)
        return namespaces

    @field_validator("certfile")
    @classmethod
    def _is_served(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        if file is not None and others.data.get("tls") is False:
            raise ValueError("tls = false serves no certificate")
        return file

    @field_validator("keyfile")
    @classmethod
    def _has_certificate(cls, file: Path | None, others: ValidationInfo) -> Path | None:
        if file is not None and others.data.get("certfile") is None:
            raise ValueError("it is the key of a certfile, which is missing")
        return file

    def certificate(self) -> Certificate | None:
        """Return what to serve https with; None for http.

        Raises:
            ValueError: where the exchange keeps its own lies something else.
        """
        from academy.exchange.cloud.security.certificate import Certificate

        if not self.tls:
            return None
        if self.certfile is None:
            return Certificate.made_here()
        keyfile = self.keyfile and self.keyfile.expanduser()
        return Certificate(self.certfile.expanduser(), keyfile)

    @classmethod
    def from_toml(cls, path: str | Path) -> Self:
        """Read a configuration file, and nothing but that.

        Raises:
            ValueError: it is not TOML, or a key or value in it is not known; the
                message names the key, the value and the nearest right ones.
            FileNotFoundError: it does not exist.
        """
        return Settings().read_file(path).validate(cls)

    @classmethod
    def load(cls, path: str | Path | None = None) -> Self:
        """Read what an operator has chosen: environment over file over defaults.

        Raises:
            ValueError: as `from_toml`, for variables of the environment as well.
            FileNotFoundError: the file does not exist.
        """
        return cls.settings(path).validate(cls)

    @classmethod
    def settings(cls, path: str | Path | None = None) -> Settings:
        """Read it unchecked, to tell where each value comes from."""
        settings = Settings() if path is None else Settings().read_file(path)
        return settings.read_environment(cls)
