"""Whether a server answers, and what it has: seconds at most, silent, and no secret in what is said."""

from __future__ import annotations

import base64
import logging
import os
import urllib.error
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.parse import unquote, urlsplit

from common.config import Settings, without_credentials
from common.errors import PipelineError
from common.services.supervisor import ServiceStatus

TIMEOUT_S = 4.0  # a broker on the same continent answers within 0.5 s, TLS and SASL included
EMBEDDED = "embedded"  # the source of an address that is an embedded service's

# Service -> the setting that holds its address.
ADDRESS_SETTINGS = {"kafka": "bootstrap_servers", "registry": "registry_url", "valkey": "redis_url"}

_log = logging.Logger("probe", level=logging.CRITICAL)  # librdkafka would write a line per attempt to stderr


@dataclass(frozen=True)
class Brokers:
    """A Kafka cluster as it answers. `partitions` of the topic that was asked for; empty: there is no such topic."""

    count: int
    partitions: tuple[int, ...]


def with_running_services(settings: Settings, services: Iterable[ServiceStatus]) -> Settings:
    """Settings in which an embedded service that runs has its address."""
    addresses = {
        ADDRESS_SETTINGS[service.name]: service.address
        for service in services
        if service.name in settings.missing_services and service.address
    }
    return settings.with_values(EMBEDDED, **addresses)


def ask_kafka(settings: Settings, topic: str) -> Brokers:
    """Raises PipelineError `kafka_unreachable`, or ConfigError for security settings that cannot work."""
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient

    from common.kafka_config import kafka_config

    errors: list[str] = []
    admin = AdminClient({**kafka_config(settings), "error_cb": lambda error: errors.append(error.str())}, logger=_log)
    try:
        metadata = admin.list_topics(timeout=TIMEOUT_S)
    except KafkaException as error:
        admin.poll(0)  # hands over what librdkafka met on the way: "authentication failed" hides behind "timed out"
        why = errors[-1] if errors else error.args[0].str()
        raise _unreachable("Kafka", settings.bootstrap_servers, why, "kafka_unreachable") from None
    found = metadata.topics.get(topic)
    return Brokers(len(metadata.brokers), tuple(sorted(found.partitions)) if found is not None else ())


def end_offsets(settings: Settings, topic: str, partitions: Sequence[int]) -> dict[int, int]:
    """Partition -> the offset after its last committed record. Raises PipelineError `kafka_unreachable`."""
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    from common.kafka_config import kafka_config

    config: dict[str, Any] = {
        **kafka_config(settings),
        "group.id": "beam-pipelines-status",  # required by the client, never committed to
        "enable.auto.commit": False,
        "isolation.level": "read_committed",
    }
    consumer = Consumer(config, logger=_log)
    try:
        return {
            partition: consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S)[1]
            for partition in partitions
        }
    except KafkaException as error:
        why = error.args[0].str()
        raise _unreachable("Kafka", settings.bootstrap_servers, why, "kafka_unreachable") from None
    finally:
        consumer.close()


def ask_registry(url: str) -> None:
    """GET /subjects. Raises PipelineError `registry_unreachable` or `bad_url`."""
    shown = without_credentials(url)
    address = f"{shown.rstrip('/')}/subjects"
    try:
        request = urllib.request.Request(address, headers=_authorization(url))  # noqa: S310  the user's own address
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            response.read(1)
    except urllib.error.HTTPError as error:
        raise _unreachable("the schema registry", shown, f"HTTP {error.code}", "registry_unreachable") from None
    except OSError as error:
        why = getattr(error, "reason", error)
        raise _unreachable("the schema registry", shown, str(why), "registry_unreachable") from None
    except (ValueError, HTTPException) as error:
        raise _unreachable("the schema registry", shown, f"no URL ({type(error).__name__})", "bad_url") from None


def ask_redis(url: str) -> None:
    """PING. Raises PipelineError `online_unreachable` or `bad_url`."""
    import redis

    from common.online.feast_redis import PASSWORD_VARIABLE

    shown = without_credentials(url)
    try:
        with redis.Redis.from_url(
            url,
            password=os.environ.get(PASSWORD_VARIABLE),
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
        ) as client:
            client.ping()
    except redis.AuthenticationError:
        raise PipelineError(
            f"Redis at {shown} refuses the password",
            code="online_unreachable",
            hint=f"export {PASSWORD_VARIABLE}=…",
        ) from None
    except redis.RedisError as error:
        raise _unreachable("Redis", shown, str(error), "online_unreachable") from None
    except ValueError:  # it quotes parts of the URL, which may be the password
        raise _unreachable("Redis", shown, "no Redis URL", "bad_url") from None


def _authorization(url: str) -> dict[str, str]:
    """The header for credentials that are part of a URL."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def _unreachable(what: str, address: str, why: str, code: str) -> PipelineError:
    return PipelineError(
        f"{what} at {address} does not answer: {why}",
        code=code,
        hint="python -m beam_pipelines config shows where addresses are from; without one the service is embedded",
    )
