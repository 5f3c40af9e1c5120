"""URLs as logs and audit entries show them."""

from __future__ import annotations

import pytest
from trunkline_runtime.redacted_url import redacted_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://user:pass%20word@id.example:8443/keys?key=s3cret#s3cret", "https://id.example:8443/keys"),
        ("http://[::1]:80/keys?key=s3cret", "http://[::1]:80/keys"),
        ("", ""),
        ("https://[", "not a URL"),
        ("https://a:x", "not a URL"),
    ],
)
def test_only_the_public_part_of_a_url_is_shown(url: str, shown: str) -> None:
    assert redacted_url(url) == shown
