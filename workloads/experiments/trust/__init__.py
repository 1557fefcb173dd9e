"""Figures of guarded processes beside what they are compared with: RAKIS' settings, rkt-io's interfaces."""
