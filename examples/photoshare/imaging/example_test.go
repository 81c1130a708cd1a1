package imaging_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"strings"

	"github.com/shardgram/shardgram/examples/photoshare/imaging"
)

func ExampleProcessor_Square() {
	p, err := imaging.New(imaging.Config{})
	if err != nil {
		log.Fatal(err)
	}
	upload, err := os.Open("../testdata/chelsea.jpg")
	if err != nil {
		log.Fatal(err)
	}
	defer upload.Close()

	photo, err := p.Square(context.Background(), upload)
	if err != nil {
		log.Fatal(err)
	}
	for _, size := range imaging.Sizes() {
		fmt.Printf("cat_%v.jpg is a JPEG: %v\n", size, strings.HasPrefix(string(photo[size]), "\xFF\xD8"))
	}

	_, err = p.Square(context.Background(), strings.NewReader("<html>"))
	fmt.Println(errors.Is(err, imaging.ErrNotJPEG), err)
	// Output:
	// cat_612.jpg is a JPEG: true
	// cat_306.jpg is a JPEG: true
	// cat_150.jpg is a JPEG: true
	// true imaging: square: the file is not a JPEG photo
}
