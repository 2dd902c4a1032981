"""What a run tells about itself while it works: metrics, timers, a progress display and recorded episodes."""
