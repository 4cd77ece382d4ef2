"""The Celery application: tasks, configuration, what our workers do otherwise than Celery's.

May import the wiring and all that it wires, and operations. All that knows the insides of Celery,
kombu and billiard is here and nowhere else; what a task does is never here.
"""

from __future__ import annotations
