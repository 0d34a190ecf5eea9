"""Classification of whole scans: slice folders to volumes, patient-wise splits, figures, predictions."""
