"""A `logging.conf` with one handler, whose class and arguments are filled in by a test."""

LOGGING = """[loggers]
keys=root
[handlers]
keys=a
[formatters]
keys=
[logger_root]
level=INFO
handlers=a
[handler_a]
class={cls}
args={args}
"""
