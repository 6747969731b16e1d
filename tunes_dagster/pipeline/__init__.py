"""What Dagster loads beside `assets` and `resources`: definitions, partitions, jobs, sensors, schedules, launches."""
