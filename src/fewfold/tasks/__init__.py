"""Data and metrics of the tasks that compressed models are judged on."""
