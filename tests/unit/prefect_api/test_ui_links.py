"""Where people find a flow run's page."""

from __future__ import annotations

from uuid import UUID

import pytest
from prefect import settings as prefect_settings

from dispatcher.prefect_api import ui_links

RUN = UUID(int=7)
CLOUD = "https://api.prefect.cloud/api/accounts/a-1/workspaces/w-2"


@pytest.mark.parametrize(
    ("api", "ui"),
    [
        ("http://127.0.0.1:4200/api", "http://127.0.0.1:4200"),
        ("http://127.0.0.1:4200/api/", "http://127.0.0.1:4200"),
        ("https://prefect.example/team/api", "https://prefect.example/team"),
        (CLOUD, "https://app.prefect.cloud/account/a-1/workspace/w-2"),
    ],
)
def test_the_user_interface_is_where_prefects_own_client_looks_for_it(api: str, ui: str) -> None:
    assert ui_links.ui_url(api) == ui
    assert ui_links.run_link(ui, RUN) == f"{ui}/runs/flow-run/{RUN}"
    with prefect_settings.temporary_settings({prefect_settings.PREFECT_API_URL: api.rstrip("/")}):
        assert prefect_settings.PREFECT_UI_URL.value() == ui


def test_a_password_in_the_address_of_the_api_is_in_no_link() -> None:
    assert ui_links.ui_url("http://me:s3cret@prefect:4200/api") == "http://prefect:4200"
