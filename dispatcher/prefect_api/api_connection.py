"""The connection to the Prefect API, as the settings say."""

from __future__ import annotations

import importlib.util
import logging
import ssl

from dispatcher import errors, settings
from dispatcher.prefect_api import client, retry, transport, ui_links

logger = logging.getLogger(__name__)


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
            tls=_tls(options),
            http2=options.prefect_api_enable_http2 and _has_http2(),
            custom_headers=options.prefect_client_custom_headers,
            timeout_seconds=timeout_seconds,
            retry_policy=retry_policy,
        )
    )


def _tls(options: settings.Settings) -> ssl.SSLContext | None:
    """What the API's certificate is checked against, where the settings say more than usual."""
    file = options.prefect_api_ssl_cert_file
    try:
        if options.prefect_api_tls_insecure_skip_verify:
            return _unverified()
        return ssl.create_default_context(cafile=file) if file else None
    except (OSError, ssl.SSLError) as error:
        raise errors.SettingsError(
            f"PREFECT_API_SSL_CERT_FILE is wrong: {file} cannot be used ({error.strerror})"
        ) from None


def _unverified() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _has_http2() -> bool:
    if importlib.util.find_spec("h2") is not None:
        return True
    logger.warning("PREFECT_API_ENABLE_HTTP2 needs the package h2; the API is asked by HTTP/1.1")
    return False


def ui_url(options: settings.Settings) -> str:
    """Where people find the user interface of the settings' Prefect."""
    return options.prefect_ui_url or ui_links.ui_url(options.prefect_api_url)
