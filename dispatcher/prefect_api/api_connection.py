"""The connection to the Prefect API, as the settings say."""

from __future__ import annotations

from dispatcher import settings
from dispatcher.prefect_api import client, retry, transport, ui_links


def connect_api(
    options: settings.Settings,
    *,
    timeout_seconds: float = transport.TIMEOUT_SECONDS,
    retry_policy: retry.RetryPolicy = retry.RetryPolicy(),  # noqa: B008 - it is frozen
) -> client.PrefectClient:
    """Make an API client; connects when first used."""
    key, auth = options.prefect_api_key, options.prefect_api_auth_string
    return client.PrefectClient(
        transport.Transport(
            options.prefect_api_url,
            api_key=key.get_secret_value() if key else None,
            auth_string=auth.get_secret_value() if auth else None,
            custom_headers=options.prefect_client_custom_headers,
            timeout_seconds=timeout_seconds,
            retry_policy=retry_policy,
        )
    )


def ui_url(options: settings.Settings) -> str:
    """Where people find the user interface of the settings' Prefect."""
    return options.prefect_ui_url or ui_links.ui_url(options.prefect_api_url)
