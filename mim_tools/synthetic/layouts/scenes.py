"""Views and groups of labels that several datasets share."""

from __future__ import annotations

from mim_tools.synthetic.layouts.writer import View

ABDOMEN = View((368.0, 300.0, 336.0), ((0.0, 5.0, 8.0),))
BELLY = View((368.0, 300.0, 416.0), ((0.0, 5.0, -40.0), (0.0, 5.0, -150.0)))  # down to the prostate
CHEST = View((352.0, 288.0, 320.0), ((0.0, 0.0, 160.0),))
HEART = View((200.0, 200.0, 200.0), ((-8.0, 22.0, 150.0),))

LIVER = ("liver", "liver_vessel", "liver_lesion", "liver_tumour")
RIGHT_KIDNEY = ("right_kidney", "right_kidney_lesion")
LEFT_KIDNEY = ("left_kidney", "left_kidney_lesion")
PANCREAS = ("pancreas", "pancreas_tumour")
AORTA = ("aorta", "ascending_aorta")
