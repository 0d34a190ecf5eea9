"""What evaluations write: tables, figures and pictures, one module per task."""
