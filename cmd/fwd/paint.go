package main

import (
	"strings"
	"unicode/utf8"
)

// A style is how a word looks on a terminal that has colour: an SGR code.
type style string

const (
	plain  style = ""
	strong style = "1"
	faint  style = "2"
	good   style = "32" // direct, up
	fair   style = "33" // by relay, waiting
	bad    style = "31"
)

// A cell is a word of a table. Its colour repeats what it says, so that without
// colour nothing is lost.
type cell struct {
	text  string
	style style
}

// A painter writes styled text; false: without styles.
type painter bool

func (p painter) paint(s style, text string) string {
	if !bool(p) || s == plain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// section prints aligned rows under a title, or nothing. Columns that are empty in
// every row take no room.
func (p painter) section(b *strings.Builder, title string, rows [][]cell) {
	if len(rows) == 0 {
		return
	}
	var width []int
	for _, r := range rows {
		for i, c := range r {
			c.text = plainly(c.text)
			r[i] = c
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], utf8.RuneCountInString(c.text))
		}
	}
	b.WriteString("\n" + p.paint(strong, title) + "\n")
	for _, r := range rows {
		line, gap := "", " "
		for i, c := range r {
			if width[i] == 0 {
				continue
			}
			if c.text != "" {
				line += gap + " " + p.paint(c.style, c.text)
				gap = ""
			} else {
				gap += " "
			}
			gap += strings.Repeat(" ", width[i]-utf8.RuneCountInString(c.text)+1)
		}
		b.WriteString(line + "\n")
	}
}

// sparkline draws values as bars of eighths, scaled to the greatest; nothing is a low line.
func sparkline(values []int64) string {
	const bars = "▁▂▃▄▅▆▇█"
	most := int64(1)
	for _, v := range values {
		most = max(most, v)
	}
	var b strings.Builder
	for _, v := range values {
		i := int(float64(v) / float64(most) * 7.999)
		b.WriteString(string([]rune(bars)[i]))
	}
	return b.String()
}

// cut shortens a painted line to so many columns, colour codes not counted.
func cut(line string, columns int) string {
	var b strings.Builder
	n, code := 0, false
	for _, r := range line {
		switch {
		case r == '\x1b':
			code = true
		case code:
			code = r != 'm'
		default:
			if n++; n > columns {
				continue // codes that follow still end what began
			}
		}
		b.WriteRune(r)
	}
	return b.String()
}
