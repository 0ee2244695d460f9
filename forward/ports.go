package forward

import (
	"fmt"
	"strconv"
	"strings"
)

// MaxPorts is how many ports one range may have: 1024, each a socket at the entry.
const MaxPorts = 1024

// parsePorts reads a port, by one, or a range of them: its first, and how many follow.
func parsePorts(s string, one func(string) (int, error)) (first, more int, err error) {
	from, to, ok := strings.Cut(s, "-")
	if !ok || from == "" || to == "" || strings.ContainsFunc(from+to, notDigit) {
		first, err = one(s)
		return first, 0, err
	}
	if first, err = parsePort(from); err != nil {
		return 0, 0, err
	}
	last, err := parsePort(to)
	switch {
	case err != nil:
		return 0, 0, err
	case last < first:
		return 0, 0, fmt.Errorf("the range %s ends before it begins; write %d-%d", s, last, first)
	case last-first >= MaxPorts:
		return 0, 0, fmt.Errorf("the range %s has %d ports; at most %d go together", s, last-first+1, MaxPorts)
	}
	return first, last - first, nil
}

// rangeEnd is what follows the first port of a range in its text.
func rangeEnd(port, more int) string {
	if more == 0 {
		return ""
	}
	return "-" + strconv.Itoa(port+more)
}
