package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestAPictureShowsEveryNodeAndMark(t *testing.T) {
	t.Parallel()
	r, err := readRecording(strings.Join(watchColumns(), ",") + `
0.00,n1,true,active,10,30,1048576,5000,0
0.00,n2,true,active,0,30,2097152,0,0
# 0.5 n2 is <drained>
1.00,n1,true,active,5,30,1048576,2500,2
1.00,n2,true,draining,5,30,2097152,2500,2
`)
	if err != nil {
		t.Fatal(err)
	}
	picture := r.draw("a & b")
	for _, want := range []string{">n1<", ">n2<", "n2 is &lt;drained&gt;", "a &amp; b", "ranges led"} {
		if !strings.Contains(picture, want) {
			t.Errorf("the picture lacks %q", want)
		}
	}
	if got, want := strings.Count(picture, "<polyline"), 2*len(panels()); got != want {
		t.Errorf("%d lines, want %d", got, want)
	}
	for d := xml.NewDecoder(strings.NewReader(picture)); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("not well formed: %v", err)
		}
	}
}

func TestARecordingThatIsNoneIsRefused(t *testing.T) {
	t.Parallel()
	head := strings.Join(watchColumns(), ",") + "\n"
	for name, text := range map[string]string{
		"empty": "", "no rows": head, "other columns": "a,b\n1,2\n",
		"a word for a number": head + "x,n1,true,active,1,1,1,1,1\n",
		"a row is cut":        head + "1,n1,true\n",
		"a mark without time": head + "# soon\n1,n1,true,active,1,1,1,1,1\n",
	} {
		if _, err := readRecording(text); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}
