package main

import (
	"bytes"
	"strings"
	"testing"

	"fwd/internal/daemon"
)

// A terminal obeys nobody but fwd, whoever's words fwd shows.
func TestWordsOfOthersAreWordsAlone(t *testing.T) {
	const evil = "a\x1b]0;title\x07b\u009b31mc\u202ed\r"
	for what, show := range map[string]func(*output){
		"answer":  func(o *output) { o.answer("%s", evil) },
		"story":   func(o *output) { o.story("%s", evil) },
		"stage":   func(o *output) { o.stage(evil) },
		"failure": func(o *output) { o.failure(&daemon.Failure{What: evil, Hint: evil}) },
		"table":   func(o *output) { o.table([][]string{{evil, evil}}) },
		"status": func(o *output) {
			o.painted(o.answers.status(&daemon.Status{Warnings: []string{evil}, Wishes: []daemon.WishStatus{{Wish: "connect web", State: "failing", Error: evil}}}, false))
		},
	} {
		var shown bytes.Buffer
		show(&output{stdout: &shown, stderr: &shown})
		if text := shown.String(); strings.ContainsAny(text, "\x1b\x07\u009b\u202e\r") || !strings.Contains(text, "a]0;titleb31mcd") {
			t.Errorf("%s shows %q", what, text)
		}
	}
}
