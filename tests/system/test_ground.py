"""What the other system tests stand on: a Redis that is new enough and survives a crash, and an image that runs."""

from __future__ import annotations

import subprocess

import redis

import images
from yardtest.redis import RedisServer

LIBRARY = "#!lua name=ground\nredis.register_function('ground_echo', function(keys, args) return args[1] end)"


def test_redis_is_7_or_later_and_has_functions(fresh_redis_url: str) -> None:
    client = redis.Redis.from_url(fresh_redis_url, decode_responses=True)
    assert int(client.info("server")["redis_version"].split(".")[0]) >= 7
    client.function_load(LIBRARY, replace=True)
    assert client.fcall("ground_echo", 0, "hello") == "hello"
    assert client.function_delete("ground")


def test_each_test_has_an_empty_database(fresh_redis_url: str, redis_url: str) -> None:
    client = redis.Redis.from_url(fresh_redis_url)
    assert client.dbsize() == 0
    client.set("here", "1")
    assert redis.Redis.from_url(redis_url).get("here") is None


def test_what_redis_acknowledged_is_there_after_kill_9(own_redis: RedisServer) -> None:
    client = redis.Redis.from_url(own_redis.url(3))
    client.set("kept", "1")
    own_redis.kill9()
    own_redis.start()
    assert redis.Redis.from_url(own_redis.url(3)).get("kept") == b"1"


def test_the_image_runs_a_command_without_a_network_as_nobody(image: str) -> None:
    hardened = ["--network", "none", "--user", "65534:65534", "--read-only", "--cap-drop", "ALL"]
    ran = subprocess.run(
        ["docker", "run", "--rm", *hardened, image, "sh", "-c", "id -u && true"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "65534\n", "")


def test_making_the_image_again_changes_nothing(image: str) -> None:
    def image_id() -> str:
        asked = ["docker", "image", "inspect", "--format", "{{.Id}}", image]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout

    before = image_id()
    images.busybox(image)
    assert image_id() == before
