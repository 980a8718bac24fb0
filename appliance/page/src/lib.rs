//! What every page shares: the shell, the style, progress bars, small charts.
