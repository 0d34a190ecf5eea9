"""Label numbers of the synthetic anatomy: the labels that every CT has, and finer ones for whoever asks."""

import numpy as np

_NAMES = (
    "background",
    "body",
    "subcutaneous_fat",
    "muscle",
    "vertebrae",
    "intervertebral_discs",
    "spinal_canal",
    "ribs",
    "costal_cartilages",
    "sternum",
    "shoulder_girdle",
    "pelvis",
    "femurs",
    "right_lung",
    "left_lung",
    "lung_vessels",
    "airways",
    "heart",
    "aorta",
    "pulmonary_artery",
    "superior_vena_cava",
    "inferior_vena_cava",
    "portal_vein",
    "oesophagus",
    "stomach",
    "bowel",
    "liver",
    "gallbladder",
    "pancreas",
    "spleen",
    "right_kidney",
    "left_kidney",
    "right_adrenal",
    "left_adrenal",
    "bladder",
    "lung_lesion",
    "liver_lesion",
    "kidney_lesion",
)

# "body" is what is inside the muscle wall and is no named organ: fat between the organs, small vessels, soft tissue.
SYNTHETIC_LABELS: dict[int, str] = dict(enumerate(_NAMES))

# Parts of the labels above that some segmentations tell apart: finer label -> the label that it belongs to.
PARENTS: dict[str, str] = {
    "prostate": "body",
    "left_ventricle": "heart",
    "left_myocardium": "heart",
    "right_ventricle": "heart",
    "left_atrium": "heart",
    "right_atrium": "heart",
    "ascending_aorta": "aorta",
    "duodenum": "bowel",
    "liver_vessel": "liver",
    "right_kidney_lesion": "kidney_lesion",
    "left_kidney_lesion": "kidney_lesion",
    "lung_tumour": "lung_lesion",
    "covid_lesion": "lung_lesion",
    "pneumonia": "lung_lesion",
    "liver_tumour": "liver_lesion",
    "pancreas_tumour": "pancreas",
    "colon_tumour": "bowel",
}
FINE_LABELS: dict[int, str] = dict(enumerate((*_NAMES, *PARENTS)))
LABEL_NUMBERS: dict[str, int] = {name: number for number, name in FINE_LABELS.items()}

# by number of `FINE_LABELS`: the number of `SYNTHETIC_LABELS` that it belongs to
TO_COARSE = np.array([LABEL_NUMBERS[PARENTS.get(name, name)] for name in FINE_LABELS.values()], dtype=np.uint8)
