"""One file per operator, each with an `OPERATOR`; modules with a leading underscore hold what several share."""
