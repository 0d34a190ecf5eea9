"""Pictures of pre-training for people who read scans: masked reconstruction per level, and where the volumes were cut.

Every function goes from arrays to a matplotlib `Figure` or to PNG files. Nothing here touches pyplot, so a picture can
be drawn in any thread and leaves no global state behind.
"""
