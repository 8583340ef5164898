"""Pictures of anomaly maps, and the page that shows how well a model inspects."""
