"""Results to plotly figures: pure functions `result -> go.Figure`, the only importers of plotly.

Modules are imported by topic (`steerkit.plotting.sweep`, ...); `style` is what they share.
"""
