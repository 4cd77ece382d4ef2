"""The Celery app, which ``celery -A dispatcher …`` finds here."""

from __future__ import annotations

import sys

from celery import Celery

from dispatcher import errors, settings
from dispatcher.celery_app import app as apps


def _app_from_environment() -> Celery:
    try:
        return apps.create_app(settings.load())
    except errors.SettingsError as error:
        # Celery prints a traceback for every exception raised here but this one.
        sys.exit(f"dispatcher: {error}")


app = _app_from_environment()
