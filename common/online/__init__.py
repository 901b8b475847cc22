"""The online store: the newest feature row of each entity, in Redis, in the layout that Feast reads."""

from common.online.feast_redis import OnlineStore
from common.online.publisher import OnlinePublisher
from common.online.staging import stage_online

__all__ = ["OnlineStore", "OnlinePublisher", "stage_online"]
